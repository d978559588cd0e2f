"""maps and smaps are written again byte for byte as they were read."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmalab.errors import InputError
from vmalab.live import maps_text
from vmalab.live.maps_text import Mapping, MapsText
from vmalab.live.procfs import parse_maps

NAMES = [
    b"",
    b"[heap]",
    b"[stack]",
    b"[vvar]",
    b"[vdso]",
    b"[vsyscall]",
    b"[uprobes]",
    b"[anon:scudo:primary]",
    b"[anon_shmem:a name]",
    b"/usr/lib/x86_64-linux-gnu/libc.so.6",
    b"/tmp/deleted (deleted)",
    b"/tmp/two\\012lines",
    b"/tmp/back\\slash and  spaces ",
    b"/dev/shm/\xff\xfe not UTF-8",
    b"/memfd:jit (deleted)",
    b"/SYSV0000002a (deleted)",
    b"anon_inode:[perf_event]",
    b"socket:[1234]",
]
ODD = (
    b"00010000-00020000 r-xp 00000000 08:01 12         /a\n"
    b"08048000-08056000 rwxs 7ffffffff000 103:05 18446744073709551615  (deleted)\n"
    b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]"
)


def mappings() -> st.SearchStrategy[Mapping]:
    fields = st.lists(
        st.sampled_from(
            [
                b"Size:                328 kB",
                b"VmFlags: rd zz ?? mr ",
                b"NewField: \xff",
                b"ProtectionKey:         0",
                b"",
            ]
        )
    )
    return st.builds(
        Mapping,
        start=st.integers(0, 1 << 40).map(lambda page: page << 12),
        end=st.integers((1 << 40) + 1, (1 << 52) - 1).map(lambda page: page << 12),
        mode=st.sampled_from(["rw-p", "r--s", "---p", "rwxp"]),
        offset=st.integers(0, (1 << 52) - 1).map(lambda page: page << 12),
        device=st.sampled_from(["00:00", "fe:01", "103:00005"]),
        inode=st.integers(0, (1 << 64) - 1),
        name=st.one_of(st.sampled_from(NAMES), st.binary(max_size=20).filter(lambda name: b"\n" not in name)),
        lines=fields,
    )


@given(st.lists(mappings(), max_size=5), st.booleans())
def test_what_is_written_is_read_and_written_again(found: list[Mapping], ended: bool) -> None:
    text = MapsText(found, ended=ended or not found).render()
    again = maps_text.parse(text, "smaps")
    assert again.render() == text
    for before, after in zip(found, again.mappings, strict=True):
        shown = (before.start, before.end, before.mode, before.offset, before.device, before.inode)
        assert (after.start, after.end, after.mode, after.offset, after.device, after.inode) == shown
        assert after.name == before.name.lstrip(b" ")


@given(st.lists(st.sampled_from([*ODD.splitlines(keepends=True), b"\n", b"Rss: 4 kB\n", b"Rss: 4 kB", b"x", b"00"])))
def test_whatever_is_read_is_written_again(parts: list[bytes]) -> None:
    text = b"".join(parts)
    try:
        found = maps_text.parse(text, "maps")
    except InputError:
        return
    assert found.render() == text


def test_oddities() -> None:
    found = maps_text.parse(ODD, "maps")
    assert found.render() == ODD
    assert [each.name for each in found.mappings] == [b"/a", b"(deleted)", b"[vsyscall]"]
    assert found.mappings[1].inode == (1 << 64) - 1
    assert not found.has_fields()
    assert [vma.path for vma in parse_maps(ODD)] == ["/a", "(deleted)"]


needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/PID/smaps here")


@needs_proc
@pytest.mark.parametrize("file", ["maps", "smaps"])
def test_all_processes_of_this_machine(file: str) -> None:
    seen = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or seen > 40:
            continue
        try:
            text = (folder / file).read_bytes()
        except OSError:
            continue
        found = maps_text.parse(text, file)
        assert found.render() == text
        for mapping in found.mappings:
            # A line that is made is padded as the kernel pads it.
            assert msgspec.structs.replace(mapping, spaces=-1).header() == mapping.header()
        seen += 1
    assert seen, f"not even this process, {os.getpid()}, could be read"
