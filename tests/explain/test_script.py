"""Random scripts of the ledger: whatever they say, each line is done or refused, and the machine stays whole."""

import random

import pytest

from vmalab import flags as f
from vmalab.errors import InputError
from vmalab.explain.script import Script, run_script

ADVICES = [name.removeprefix("MADV_") for name in dir(f) if name.startswith("MADV_")]
OLD = ("pins_break_cow", "anonymous_exclusive", "force_write_reads_again")
"""Behaviours under which a machine stays whole, whatever is done."""


def script(rng: random.Random) -> list[str]:
    """Lines, most of which make sense."""
    lines = [f"kernel {name} = {rng.choice(('yes', 'no'))}" for name in OLD if rng.random() < 0.1]
    lines += [line for line in ('file f "old text"', "show soft-dirty", "show anon_vma") if rng.random() < 0.5]
    who, ranges, holders = ["P"], ["r0"], ["d0"]
    lines.append(f"P: map r0 {rng.choice((2, 512))}")
    for number in range(1, 40):
        process, area, holder = rng.choice(who), rng.choice(ranges), rng.choice(holders)
        options = " ".join([each for each in ("shared", "ro", "thp", "hugetlb", "f") if rng.random() < 0.2])
        choices = {
            f"{process}: map r{number} {rng.choice((1, 2, 4, 512))} {options}": 2,
            f'{process}: write {area} "{rng.choice(("x", "yy", ""))}"': 6,
            f"{process}: read {area}": 2,
            f"{process}: fork C{number}": 2,
            f"{process}: exit": 0.5,
            f"{process}: unmap {area}": 1,
            f"{process}: protect {area} {rng.choice(('none', 'r', 'rw', 'rx'))}": 2,
            f"{process}: advise {area} {rng.choice(ADVICES)}": 4,
            f'{process}: poke {area} "z" {rng.choice(("", "racing"))}': 2,
            f"d{number}: pin {process} {area} {rng.choice(('', 'write', 'force', 'fast', 'write force'))}": 2,
            f"d{number}: {rng.choice(('splice', 'fixed'))} {process} {area}": 2,
            f"{holder}: {rng.choice(('release', 'read', 'write q'))}": 3,
            f"{process}: clear_refs {rng.randrange(1, 5)}": 1,
            f"{process}: migrate {area}": 2,
            f"{process}: settle {area} {rng.choice(('', 'failed'))}": 2,
        }
        (line,) = rng.choices(list(choices), list(choices.values()))
        lines.append(line)
        verb = line.split()[1]
        if verb == "fork":
            who.append(f"C{number}")
        elif verb == "map":
            ranges.append(f"r{number}")
        elif verb in ("pin", "splice", "fixed"):
            holders.append(f"d{number}")
    return lines


@pytest.mark.parametrize("seed", range(24))
def test_any_script_leaves_the_machine_whole(seed: int) -> None:
    runs = Script()
    done = 0
    refused = []
    for line in script(random.Random(seed)):
        try:
            done += runs.line(line) is not None
        except InputError as error:
            refused.append(str(error))
        runs.validate()
    assert done, "some lines are steps"
    assert not any("\n" in text for text in refused)


def test_a_forced_write_can_change_the_page_of_zeros() -> None:
    """The old behaviour, in memory that can only be read and has no file: everybody's zeros are written to."""
    lines = ["P: map a 1 ro", "P: map b 1 ro", 'P: poke a "corrupt" racing', "P: read b"]
    assert run_script("\n".join(lines), "script").steps[-1].said == "''"
    old = run_script("\n".join(["kernel force_write_reads_again = yes", *lines]), "script")
    assert old.steps[-1].said == "'corrupt'"


def test_a_device_that_reads_does_not_write() -> None:
    steps = run_script("P: map a 1\nrdma: pin P a\nrdma: write x", "script").steps
    assert steps[-1].said.endswith("(PIN_NOT_PERMITTED)")


def test_who_has_ended_does_nothing_any_more() -> None:
    for line in ("P: read a", "C: fork P", "P: pin C a"):
        with pytest.raises(InputError, match=r"line 4: (P has ended|a child is made as|P is taken)"):
            run_script(f"P: map a 1\nP: fork C\nP: exit\n{line}", "script")
