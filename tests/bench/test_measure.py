"""Measuring: every workload runs with the same results wherever it runs, and the numbers belong together."""

import msgspec
import pytest

from vmalab.bench import workloads
from vmalab.bench.contenders import Face, Model
from vmalab.bench.measure import measure
from vmalab.bench.script import FORK, Scribe, Script
from vmalab.errors import VmalabError
from vmalab.live.agent import why_not
from vmalab.trace.records import Exec, Machine

SMALL = tuple(name for name in workloads.WORKLOADS if name not in ("mix-60k", "mix-1m", "fork-60k"))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "STEPS", 200)


def _script(name: str, rounds: int = 2) -> Script:
    start = Exec(1, 1, "", [], mmap_base=0x7FFFF7FFF000, start_brk=0x404000, brk=0x404000)
    script = Script(name, Machine(), start, pages=name in workloads.PAGED)
    workloads.WORKLOADS[name](Scribe(script, 1), rounds)
    return script


@pytest.mark.parametrize("name", SMALL)
def test_the_model_gives_what_the_script_says(name: str) -> None:
    encoded = msgspec.msgpack.encode(_script(name))
    script = msgspec.msgpack.decode(encoded, type=Script)
    for kind in (Model, Face):
        contender = kind(script)
        contender.setup()
        for number in range(len(script.rounds)):
            contender.round(number)


def test_a_script_is_the_same_for_a_seed() -> None:
    assert msgspec.msgpack.encode(_script("glibc-like")) == msgspec.msgpack.encode(_script("glibc-like"))


@pytest.mark.parametrize("name", ["pairs", "glibc-like", "protect"])
def test_a_round_leaves_about_as_many_vmas_as_it_found(name: str) -> None:
    script = _script(name, 6)
    contender = Model(script)
    contender.setup()
    assert contender.process.mm.map_count == script.vmas
    for number in range(6):
        contender.round(number)
    assert contender.process.mm.map_count < 2 * script.vmas + 200


def test_a_mix_keeps_its_number() -> None:
    script = _script("mix-1k", 3)
    contender = Model(script)
    contender.setup()
    for number in range(3):
        contender.round(number)
        assert abs(int(contender.process.mm.map_count) - script.vmas) <= 25


def test_a_wrong_result_is_told() -> None:
    script = _script("pairs")
    script.rounds[0].timed[0].result += 4096
    contender = Model(script)
    contender.setup()
    with pytest.raises(VmalabError, match="1 results of the model are not those"):
        contender.round(0)


def test_forks_are_rounds_of_one_step() -> None:
    script = _script("cow")
    assert [op.number for op in script.rounds[0].before] == [FORK]
    assert script.ops == len(script.rounds[0].timed) == 100


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("name", ["mix-10", "glibc-like", "cow"])
def test_all_contenders_do_the_same(name: str) -> None:
    told: list[int] = []
    result = measure(name, 2, told.append)
    assert told == [1, 2]
    assert result.rounds == 2
    assert result.live_ops_s is not None
    assert result.interpreted_ops_s is not None
    assert result.ctypes_ops_s is not None
    assert result.ratio_interpreted_spread is not None
    assert result.ratio_interpreted is not None
    low, high = result.ratio_interpreted_spread
    assert 0 < low <= result.ratio_interpreted <= high
