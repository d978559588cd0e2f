"""Makes the steps of test_clear_refs.py as a process of its own: how much of its memory is Referenced after each."""

import ctypes
import json
import os
import re
import sys

A, PAGE = 0x10000000, 4096
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mmap.restype = ctypes.c_void_p


class Range(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def referenced() -> int:
    """Pages of the VMA at A that count as referenced."""
    with open("/proc/self/smaps", encoding="ascii") as file:
        found = re.search(rf"(?m)^{A:08x}-.*\n(?:.*\n)*?Referenced: +(\d+) kB", file.read())
    return int(found[1]) // 4 if found else -1


def must(result: int) -> None:
    """Fail where a call does."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")


def forget_translations() -> None:
    """Have the processor look at the page tables again: it marks no page that it still knows the place of."""
    for access in (0, 3):
        must(LIBC.mprotect(ctypes.c_void_p(A), ctypes.c_size_t(8 * PAGE), access))


def perform(words: list[str | int], memfd: int) -> int:
    """One step; what is referenced after it, in a child for a fork."""
    verb, at = words[0], A + int(words[1]) * PAGE
    if verb == "map":
        flags, file = (0x32, -1) if words[1] == 0 else (0x11, memfd)
        LIBC.mmap(A, 8 * PAGE, 3, flags, file, 0)
    elif verb == "unmap":
        must(LIBC.munmap(ctypes.c_void_p(A), ctypes.c_size_t(8 * PAGE)))
    elif verb == "write":
        ctypes.memset(at, 1, 1)
    elif verb == "read":
        ctypes.string_at(at, 1)
    elif verb == "advise":
        must(LIBC.madvise(ctypes.c_void_p(at), ctypes.c_size_t(PAGE), int(words[2])))
    elif verb == "look":
        buffer = ctypes.create_string_buffer(1)
        ours, theirs = Range(ctypes.addressof(buffer), 1), Range(at, 1)
        must(LIBC.process_vm_readv(os.getpid(), ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))
    elif verb == "clear":
        with open("/proc/self/clear_refs", "w", encoding="ascii") as target:
            target.write(str(words[1]))
        forget_translations()
    elif verb == "fork":
        child = os.fork()
        if not child:
            os._exit(referenced())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return referenced()


def main() -> None:
    """The steps are the argument, in JSON; what comes out as well."""
    memfd = os.memfd_create("pages")
    os.ftruncate(memfd, 8 * PAGE)
    print(json.dumps([perform(words, memfd) for words in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
