"""Flags by name."""

from vmalab.calls import Call
from vmalab.trace.show import MAP_TYPES, call_text, flag_names, flags_text


def test_names_of_options_are_those_of_prctl_alone() -> None:
    assert flags_text("PR_", 65) == "PR_SET_MDWE"
    assert [flags_text("PR_", value) for value in (0, 1, 2)] == ["0", "1", "2"], "what an option takes is no option"


def test_types_of_mappings_are_no_bits() -> None:
    assert flags_text("MAP_", 0x22) == "MAP_PRIVATE|MAP_ANONYMOUS"
    assert not set(MAP_TYPES.values()) & {name for _, name in flag_names("MAP_")}


def test_a_command_of_shmctl_has_its_name() -> None:
    assert call_text(Call("shmctl", (5, 2, 0x7FFF1000))) == "shmctl(5, IPC_STAT, 0x7fff1000)"
    assert call_text(Call("shmctl", (5, 99, 0))) == "shmctl(5, 99, 0)"
