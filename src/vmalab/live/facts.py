"""What a run depends on that belongs to the machine: read from /proc and /sys, or tried out."""

import ctypes
import errno
import mmap
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from vmalab.trace.records import Machine

THP: Final = Path("/sys/kernel/mm/transparent_hugepage")
"""The settings of transparent huge pages."""
POOLS: Final = Path("/sys/kernel/mm/hugepages")
"""The pools of huge pages."""
_PR_SET_VMA: Final = 0x53564D41
_CALL_PKEY_MPROTECT: Final = 329
_CALL_PKEY_ALLOC: Final = 330
_CALL_PKEY_FREE: Final = 331
_MAP_FAILED: Final = (1 << 64) - 1
_HIGHEST_SENSIBLE_MINIMUM: Final = 1 << 20


def machine_facts() -> Machine:
    """The facts of this machine; what cannot be told keeps the default of the record."""
    facts = Machine(kernel=os.uname().release, arch=platform.machine(), page_size=mmap.PAGESIZE)
    memory = dict(re.findall(r"(?m)^(\w+): +(\d+) kB$", _text("/proc/meminfo")))
    facts.ram_pages = int(memory.get("MemTotal", 0)) * 1024 // facts.page_size
    facts.swap_pages = int(memory.get("SwapTotal", 0)) * 1024 // facts.page_size
    for name in ("max_map_count", "overcommit_memory", "overcommit_ratio", "overcommit_kbytes"):
        setattr(facts, name, _number(f"/proc/sys/vm/{name}", getattr(facts, name)))
    facts.dac_mmap_min_addr = _number("/proc/sys/vm/mmap_min_addr", facts.mmap_min_addr)
    facts.mmap_min_addr = _lowest_address(_number("/proc/sys/vm/mmap_min_addr", facts.mmap_min_addr))
    gap = re.search(r"(?:^|\s)stack_guard_gap=(\d+)", _text("/proc/cmdline"))
    if gap is not None:
        facts.stack_guard_gap = int(gap[1])
    facts.thp_enabled = chosen(_text(str(THP / "enabled")), "none")
    facts.thp_shmem = chosen(_text(str(THP / "shmem_enabled")), "never")
    facts.hugepages = free_huge_pages()
    nodes = Path("/sys/devices/system/node")
    facts.numa_nodes = max(1, len(list(nodes.glob("node[0-9]*")))) if nodes.is_dir() else 1
    facts.soft_dirty = re.search(r"(?m)^VmFlags:.* sd\b", _text("/proc/self/smaps")) is not None
    facts.anon_names = _anonymous_names()
    facts.pkeys_unusable = _is_refused_key_0()
    facts.pkeys = not facts.pkeys_unusable and _protection_keys()
    return facts


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str, default: int) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else default


def chosen(text: str, default: str) -> str:
    """The word in brackets: which of its words a setting has."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else default


def free_huge_pages() -> dict[str, int]:
    """Pages that nobody has, nor was promised, by size in KiB."""
    found = {}
    for size, pool in pools().items():
        found[size] = max(_number(f"{pool}/free_hugepages", 0) - _number(f"{pool}/resv_hugepages", 0), 0)
    return found


@cache
def pools() -> dict[str, str]:
    """Where the kernel tells of huge pages, by their size in KiB."""
    found = sorted(POOLS.glob("hugepages-*kB")) if POOLS.is_dir() else []
    return {pool.name.removeprefix("hugepages-").removesuffix("kB"): str(pool) for pool in found}


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_size_t
    word = ctypes.c_size_t
    libc.mmap.argtypes = (word, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    libc.munmap.argtypes = (word, word)
    libc.prctl.argtypes = (ctypes.c_int, word, word, word, word)
    return libc


def _lowest_address(configured: int) -> int:
    """The lowest address that may be mapped: the kernel raises a hint below it.

    The sysctl does not show the security module's minimum.
    """
    libc = _libc()
    size = mmap.PAGESIZE
    private = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS
    got = int(libc.mmap(size, size, 0, private, -1, 0))
    if got == _MAP_FAILED:
        return configured
    libc.munmap(got, size)
    return got if configured <= got <= _HIGHEST_SENSIBLE_MINIMUM else configured


@contextmanager
def _page(libc: ctypes.CDLL) -> Iterator[int]:
    """The address of a page of anonymous memory that is there meanwhile; 0 where there is none to be had."""
    size = mmap.PAGESIZE
    page = int(libc.mmap(0, size, 0, 0x22, -1, 0))
    if page == _MAP_FAILED:
        yield 0
        return
    yield page
    libc.munmap(page, size)


def _anonymous_names() -> bool:
    libc = _libc()
    name = ctypes.create_string_buffer(b"vmalab")
    with _page(libc) as page:
        return page != 0 and bool(libc.prctl(_PR_SET_VMA, 0, page, mmap.PAGESIZE, ctypes.addressof(name)) == 0)


def _is_refused_key_0() -> bool:
    """Whether key 0 cannot be named: only where a kernel that is built for protection keys finds none."""
    if platform.machine() != "x86_64":
        return False
    libc = _libc()
    with _page(libc) as page:
        arguments = [ctypes.c_long(each) for each in (page, mmap.PAGESIZE, 0, 0)]
        return page != 0 and libc.syscall(_CALL_PKEY_MPROTECT, *arguments) != 0 and ctypes.get_errno() == errno.EINVAL


def _protection_keys() -> bool:
    if platform.machine() != "x86_64":
        return False
    libc = _libc()
    key = int(libc.syscall(_CALL_PKEY_ALLOC, ctypes.c_long(0), ctypes.c_long(0)))
    if key >= 0:
        libc.syscall(_CALL_PKEY_FREE, ctypes.c_long(key))
    return key >= 0
