"""Records that are as docs/trace-format.md has them, for Hypothesis."""

from itertools import pairwise

from hypothesis import strategies as st

from vmalab.flags import CLONE_THREAD, MNEMONICS
from vmalab.trace.check import ARGUMENTS, CAPS, FAULTS, KINDS
from vmalab.trace.records import Call, End, Exec, Exit, Fault, File, Fork, Header, Limits, Lost, Machine, Record, Vma

WORDS = st.integers(0, 2**64 - 1)
PIDS = st.integers(1, 1 << 22)
SIZES = st.integers(0, 1 << 40)
TEXT = st.text(st.characters(min_codepoint=0x20, exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=20)
FLAGS = st.lists(st.sampled_from(sorted(MNEMONICS)), unique=True).map(" ".join)
DEVICES = st.tuples(st.integers(0, 255), st.integers(0, 255)).map(lambda pair: f"{pair[0]:02x}:{pair[1]:02x}")


@st.composite
def vma_lists(draw: st.DrawFn) -> list[Vma]:
    """Lists of VMAs in order, some of which touch."""
    bounds = sorted(draw(st.sets(st.integers(0, 1 << 35), max_size=8)))
    ranges = [(low, high) for low, high in pairwise(bounds) if draw(st.booleans())]
    return [
        Vma(
            start=low << 12,
            end=high << 12,
            flags=draw(FLAGS),
            offset=draw(st.integers(0, 1 << 40)) << 12,
            dev=draw(DEVICES),
            ino=draw(SIZES),
            path=draw(TEXT),
            anon=draw(SIZES),
            pkey=draw(st.integers(0, 15)),
        )
        for low, high in ranges
    ]


@st.composite
def grown(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Ranges of whole pages."""
    low = draw(st.integers(0, 1 << 35))
    return draw(st.sampled_from([[], [(low << 12, (low + 1) << 12)]]))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """System calls with as many arguments as they take."""
    name = draw(st.sampled_from(sorted(ARGUMENTS)))
    count = ARGUMENTS[name]
    return Call(
        n=0,
        pid=draw(PIDS),
        tid=draw(PIDS),
        call=name,
        args=draw(st.lists(WORDS, min_size=count, max_size=count)),
        ret=draw(st.one_of(st.integers(-4095, 0), st.integers(0, 2**64 - 1))),
        data=draw(st.dictionaries(st.sampled_from(["name", "cur", "nodes"]), st.one_of(WORDS, TEXT, st.lists(WORDS)))),
        written=draw(st.lists(WORDS, max_size=3)),
        grown=draw(grown()),
    )


def limits() -> st.SearchStrategy[Limits]:
    """Limits, some of them none."""
    value = st.one_of(st.none(), WORDS)
    return st.builds(Limits, as_=value, data=value, stack=value, memlock=value)


RECORDS: st.SearchStrategy[Record] = st.one_of(
    calls(),
    st.builds(
        Exec,
        n=st.just(0),
        pid=PIDS,
        exe=TEXT,
        vmas=vma_lists(),
        argv=st.lists(TEXT, max_size=3),
        mmap_base=st.one_of(st.none(), WORDS),
        limits=limits(),
        caps=st.lists(st.sampled_from(sorted(CAPS)), unique=True),
    ),
    st.builds(File, n=st.just(0), id=SIZES, dev=DEVICES, ino=SIZES, path=TEXT, kind=st.sampled_from(sorted(KINDS))),
    st.builds(Fault, n=st.just(0), pid=PIDS, tid=PIDS, addr=WORDS, write=st.booleans()),
    st.builds(Fork, n=st.just(0), pid=PIDS, tid=PIDS, parent=PIDS, parent_tid=PIDS, flags=WORDS, grown=grown()).filter(
        lambda fork: fork.pid != fork.parent or fork.flags & CLONE_THREAD != 0
    ),
    st.builds(
        Exit, n=st.just(0), pid=PIDS, vmas=st.one_of(st.none(), vma_lists()), code=st.one_of(st.none(), st.just(3))
    ),
    st.builds(Lost, n=st.just(0), pid=st.one_of(st.just(0), PIDS), why=TEXT),
)
"""Any record but the last, with its number not yet given."""


def traces() -> st.SearchStrategy[tuple[Header, list[Record]]]:
    """Whole traces: a header, and records of which the last is the end.

    The first says that something was lost, so the processes and files of the others need no introduction.
    """
    header = st.builds(
        Header,
        vmalab=st.just("trace"),
        version=st.just(1),
        faults=st.sampled_from(sorted(FAULTS)),
        command=st.lists(TEXT, max_size=3),
        machine=st.builds(Machine, kernel=TEXT, ram_pages=SIZES),
    )
    records: st.SearchStrategy[list[Record]] = st.lists(RECORDS, max_size=12).map(
        lambda middle: [Lost(n=0, pid=0, why="start"), *middle, End(n=0, reason="done")]
    )
    return st.tuples(header, records)
