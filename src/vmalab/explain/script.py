"""Scripts for the ledger: a few lines that say what processes, devices and pipes do.

kernel pins_break_cow = no          # before anything else: a behaviour that is not the default
file f "old"                        # a file, with what its first page holds
show anon_vma                       # say of each page from which anon_vma it is found, and its VMA's chain
show soft-dirty                     # before anything else: track what is written to (CONFIG_MEM_SOFT_DIRTY)
P: map buf 1                        # private memory of so many pages; also: map buf 1 f [ro], map buf 512 thp
P: write buf "text"                 # also: read buf, unmap buf, protect buf r, advise buf DONTNEED, poke buf "text"
P: fork C
P: clear_refs 4                     # nothing is soft-dirty any more; 1, 2, 3: nothing was accessed
rdma: pin P buf [write] [force]     # a device's long-term pin; also: splice (a pipe), fixed (io_uring)
rdma: write "text"                  # also: read, release
P: migrate buf                      # its page is being moved to another place in memory ...
P: settle buf [failed]              # ... and has arrived, or has stayed where it was
P: exit
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.behaviours import Value, behaviours, semantics_of
from vmalab.errors import InputError
from vmalab.explain.ledger import Ledger, Step
from vmalab.machine import KernelError, Machine, Process
from vmalab.pages.folio import PMD_ORDER
from vmalab.pages.holders import FixedBuffer, MemoryRegion, Pipe, Refused, access_process_vm
from vmalab.pages.memory import Memory, PageSettings
from vmalab.pages.migrate import Migration
from vmalab.reason import explain
from vmalab.semantics import Semantics
from vmalab.text import escape_text
from vmalab.vma.area import File

MOST: Final = 1 << 20
"""Bytes that a script may have."""
MOST_PAGES: Final = 1024
"""Pages that a range of a script may have."""
_PROTECTIONS: Final = {"none": 0, "r": 1, "rw": 3, "rx": 5, "rwx": 7}
_FIXED: Final = f.MAP_PRIVATE | f.MAP_ANONYMOUS


class _Wrong(Exception):
    """A line of a script cannot be understood; the text says why."""


class Script:
    """Runs a script, line by line, on a machine of its own."""

    def __init__(self, values: dict[str, Value] | None = None) -> None:
        self._values: dict[str, Value] = dict(values or {})
        self._machine: Machine | None = None
        self.ledger: Ledger | None = None
        self._processes: dict[str, Process] = {}
        self._ended: set[str] = set()
        self._ranges: dict[str, tuple[int, int]] = {}
        """Names of ranges: address, pages."""
        self._holders: dict[str, Pipe | MemoryRegion] = {}
        self._files: dict[str, File] = {}
        self._migrations: dict[str, Migration] = {}
        """Those under way, by the range whose first page it is."""
        self._verbs: dict[str, Callable[[str, list[str]], str]] = {
            "map": self._map,
            "write": self._write,
            "read": self._read,
            "unmap": self._unmap,
            "protect": self._protect,
            "advise": self._advise,
            "poke": self._poke,
            "fork": self._fork,
            "exit": self._exit,
            "clear_refs": self._clear_refs,
            "migrate": self._migrate,
            "settle": self._settle,
            "pin": self._pin,
            "fixed": self._fixed,
            "splice": self._splice,
            "release": self._release,
        }

    def line(self, text: str) -> Step | None:
        """Perform a line; None for one that does nothing.  Raises InputError, without saying where."""
        try:
            words = shlex.split(text, comments=True)
            if not words:
                return None
            if words[0] == "kernel":
                self._kernel(words[1:])
                return None
            if words[0] == "file":
                self._file(words[1:])
                return None
            if words[0] == "show":
                self._show(words[1:])
                return None
            return self._step(words, text)
        except (_Wrong, ValueError) as wrong:
            raise InputError(escape_text(str(wrong))) from None

    def validate(self) -> None:
        """Check the machine.  Raises AssertionError."""
        if self._machine is not None:
            self._machine.validate()

    # -- before anything else ---------------------------------------------------------------------------

    def _kernel(self, words: list[str]) -> None:
        known = behaviours(Semantics())
        if self._machine is not None:
            raise _Wrong("the kernel is chosen before anything is done")
        if len(words) != 3 or words[1] != "=" or words[2] not in ("yes", "no"):
            raise _Wrong("a behaviour is chosen as: kernel NAME = yes (or no)")
        if not isinstance(known.get(words[0]), bool):
            names = [name for name, value in known.items() if isinstance(value, bool)]
            raise _Wrong(f"there is no behaviour {words[0]}; there are: {', '.join(names)}")
        self._values[words[0]] = words[2] == "yes"

    def _show(self, words: list[str]) -> None:
        if words == ["anon_vma"]:
            self._world()[1].shows_anon_vma = True
        elif words == ["soft-dirty"]:
            if self._processes:
                raise _Wrong(
                    "what is written to is tracked from the beginning: show soft-dirty is to come before the steps"
                )
            machine, ledger = self._world()
            machine.settings.soft_dirty = f.VM_SOFTDIRTY
            ledger.shows_soft_dirty = True
        else:
            raise _Wrong("what can be shown besides is: show anon_vma, show soft-dirty")

    def _world(self) -> tuple[Machine, Ledger]:
        if self._machine is None or self.ledger is None:
            settings = PageSettings()
            settings.swap_pages = 1 << 16
            settings.hugetlb[PMD_ORDER] = 16
            memory = Memory(settings)
            self._machine = Machine(semantics_of(self._values), swap_pages=1 << 16, memory=memory)
            self._machine.settings.hugepages = 16
            self.ledger = Ledger(memory)
        return self._machine, self.ledger

    def _file(self, words: list[str]) -> None:
        if len(words) != 2:
            raise _Wrong('a file is made as: file NAME "what its first page holds"')
        machine, ledger = self._world()
        file = File(f"/{words[0]}", "00:01", 100 + len(self._files))
        file.size = PAGE_SIZE
        assert machine.memory is not None
        machine.memory.cache_of(file).content = words[1].encode()[:PAGE_SIZE]
        self._files[words[0]] = file
        ledger.file(words[0], file)

    # -- steps ------------------------------------------------------------------------------------------

    def _step(self, words: list[str], text: str) -> Step:
        if len(words) < 2 or not words[0].endswith(":"):
            raise _Wrong("a step is: WHO: WHAT ...")
        who, verb, rest = words[0][:-1], words[1], words[2:]
        if verb not in self._verbs:
            raise _Wrong(f"{verb} is no step; there are: {', '.join(self._verbs)}")
        _, ledger = self._world()
        try:
            said = self._verbs[verb](who, rest)
        except KernelError as error:
            said = f"{error.strerror} ({explain(error.reason).name})"
        except Refused as refused:
            said = str(refused)
        return ledger.step(text.partition("#")[0].strip() if "#" in text and '"' not in text else text.strip(), said)

    def _process(self, who: str) -> Process:
        machine, _ = self._world()
        if who not in self._processes:
            if who in self._ended:
                raise _Wrong(f"{who} has ended")
            if self._processes or self._ended:
                raise _Wrong(f"there is no process {who}: the first is made by its first step, all others by fork")
            self._processes[who] = machine.process()
        return self._processes[who]

    def _range(self, words: list[str], at: int = 0) -> tuple[int, int, str]:
        if len(words) <= at:
            raise _Wrong("the name of a range is missing")
        name = words[at]
        if name not in self._ranges:
            raise _Wrong(f"nobody has mapped {name}")
        return (*self._ranges[name], name)

    def _map(self, who: str, words: list[str]) -> str:
        process = self._process(who)
        _, ledger = self._world()
        if len(words) < 2 or not words[1].isdigit() or not 0 < int(words[1]) <= MOST_PAGES:
            raise _Wrong(
                f"memory is mapped as: map NAME PAGES (up to {MOST_PAGES}) [FILE] [shared] [ro] [thp] [hugetlb]"
            )
        name, pages, options = words[0], int(words[1]), words[2:]
        file = next((self._files[each] for each in options if each in self._files), None)
        unknown = [
            each for each in options if each not in self._files and each not in ("shared", "ro", "thp", "hugetlb")
        ]
        if unknown:
            raise _Wrong(f"map knows no {unknown[0]}")
        prot = f.PROT_READ if "ro" in options else f.PROT_READ | f.PROT_WRITE
        kind = f.MAP_SHARED if "shared" in options else f.MAP_PRIVATE
        kind |= (0 if file is not None else f.MAP_ANONYMOUS) | (f.MAP_HUGETLB if "hugetlb" in options else 0)
        length = pages * PAGE_SIZE
        addr = process.mmap(0, length + (PMD_SIZE if "thp" in options else 0), prot, kind, file)
        if "thp" in options:
            addr = addr + PMD_SIZE - 1 & -PMD_SIZE
            process.madvise(addr, length, f.MADV_HUGEPAGE)
        self._ranges[name] = (addr, pages)
        ledger.watch(who, process, name, addr, min(pages, 4))
        return ""

    def _write(self, who: str, words: list[str]) -> str:
        if who in self._holders:
            holder = self._holders[who]
            if not isinstance(holder, MemoryRegion) or len(words) != 1:
                raise _Wrong('a device writes as: NAME: write "text"')
            holder.write(0, words[0].encode())
            return ""
        addr, _, _ = self._range(words)
        if len(words) != 2:
            raise _Wrong('a process writes as: NAME: write RANGE "text"')
        self._process(who).write(addr, words[1].encode())
        return ""

    def _read(self, who: str, words: list[str]) -> str:
        if who in self._holders:
            holder = self._holders[who]
            found = holder.read() if isinstance(holder, MemoryRegion) else holder.held_first().read(0, PAGE_SIZE)
        else:
            addr, _, _ = self._range(words)
            found = self._process(who).read(addr, PAGE_SIZE)
        return repr(found.rstrip(b"\0")[:40])[1:]

    def _unmap(self, who: str, words: list[str]) -> str:
        addr, pages, name = self._range(words)
        self._process(who).munmap(addr, pages * PAGE_SIZE)
        self._world()[1].unwatch(who, name)
        return ""

    def _protect(self, who: str, words: list[str]) -> str:
        addr, pages, _ = self._range(words)
        if len(words) != 2 or words[1] not in _PROTECTIONS:
            raise _Wrong(f"permissions are: {', '.join(_PROTECTIONS)}")
        self._process(who).mprotect(addr, pages * PAGE_SIZE, _PROTECTIONS[words[1]])
        return ""

    def _advise(self, who: str, words: list[str]) -> str:
        addr, pages, _ = self._range(words)
        advice = getattr(f, f"MADV_{words[1]}", None) if len(words) == 2 else None
        if not isinstance(advice, int):
            raise _Wrong("advice is given as: advise RANGE DONTNEED (or another MADV_ name)")
        self._process(who).madvise(addr, pages * PAGE_SIZE, advice)
        return ""

    def _poke(self, who: str, words: list[str]) -> str:
        """A debugger writes to the process, whatever the VMA permits."""
        addr, _, _ = self._range(words)
        if len(words) not in (2, 3) or words[2:] not in ([], ["racing"]):
            raise _Wrong('a debugger writes as: NAME: poke RANGE "text" [racing]')
        process = self._process(who)
        data = words[1].encode()
        # Another thread of the process may throw the copy away as soon as it is made.
        race = (lambda: process.madvise(addr, PAGE_SIZE, f.MADV_DONTNEED)) if words[2:] == ["racing"] else None
        access_process_vm(process.mm, addr, len(data), data, race=race)
        return ""

    def _fork(self, who: str, words: list[str]) -> str:
        if len(words) != 1 or words[0] in {*self._processes, *self._holders, *self._ended}:
            raise _Wrong("a child is made as: fork NAME, with a name that is not taken")
        self._processes[words[0]] = child = self._process(who).fork()
        self._world()[1].copy(who, words[0], child)
        return ""

    def _clear_refs(self, who: str, words: list[str]) -> str:
        if len(words) != 1 or words[0] not in ("1", "2", "3", "4"):
            raise _Wrong("bits are cleared as: clear_refs 4 (soft-dirty; or 1, 2, 3: referenced)")
        self._process(who).clear_refs(int(words[0]))
        return ""

    def _migrate(self, who: str, words: list[str]) -> str:
        addr, _, name = self._range(words)
        if len(words) != 1 or name in self._migrations:
            raise _Wrong("a page is moved as: migrate RANGE, and then: settle RANGE [failed]")
        self._migrations[name] = self._process(who).migrate(addr)
        return ""

    def _settle(self, _who: str, words: list[str]) -> str:
        if not words or words[0] not in self._migrations or words[1:] not in ([], ["failed"]):
            raise _Wrong("a page that is being moved arrives as: settle RANGE [failed]")
        why = self._migrations.pop(words[0]).finish(moved=words[1:] == [])
        return f"{explain(why).sentence} ({explain(why).name})" if why else ""

    def _exit(self, who: str, words: list[str]) -> str:
        self._process(who).exit()
        del self._processes[who]
        self._ended.add(who)
        self._world()[1].unwatch(who)
        return ""

    def _owner(self, who: str, words: list[str]) -> tuple[Process, int, int, str]:
        if who in {*self._holders, *self._processes, *self._ended}:
            raise _Wrong(f"{who} is taken")
        if len(words) < 2 or words[0] not in self._processes:
            raise _Wrong("pages are held as: NAME: pin PROCESS RANGE (or splice, or fixed)")
        addr, pages, name = self._range(words, 1)
        return self._processes[words[0]], addr, pages, name

    def _pin(self, who: str, words: list[str]) -> str:
        process, addr, pages, name = self._owner(who, words)
        wrong = set(words[2:]) - {"write", "force", "fast"}
        if wrong:
            raise _Wrong(f"pin knows no {wrong.pop()}")
        region = MemoryRegion(
            process.mm, addr, pages * PAGE_SIZE, write="write" in words, fast="fast" in words, force="force" in words
        )
        return self._hold(who, region, process, name, addr, pages)

    def _fixed(self, who: str, words: list[str]) -> str:
        process, addr, pages, name = self._owner(who, words)
        return self._hold(who, FixedBuffer(process.mm, addr, pages * PAGE_SIZE), process, name, addr, pages)

    def _splice(self, who: str, words: list[str]) -> str:
        process, addr, pages, name = self._owner(who, words)
        pipe = Pipe()
        pipe.vmsplice(process.mm, addr, pages * PAGE_SIZE)
        return self._hold(who, pipe, process, name, addr, pages)

    def _hold(self, who: str, holder: Pipe | MemoryRegion, process: Process, name: str, addr: int, pages: int) -> str:
        self._holders[who] = holder
        self._world()[1].hold(who, holder, process, name, addr, min(pages, 4))
        return ""

    def _release(self, who: str, words: list[str]) -> str:
        if who not in self._holders:
            raise _Wrong(f"{who} holds nothing")
        self._holders.pop(who).close()
        self._world()[1].release(who)
        return ""


def run_script(text: str, name: str) -> Ledger:
    """Run a script: its ledger.  Raises InputError, with the line, for what cannot be understood."""
    script = Script()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            script.line(line)
        except InputError as error:
            raise InputError(f"{name}, line {number}: {error}") from None
    script.validate()
    if script.ledger is None:
        raise InputError(f"{name}: there is no step in it")
    return script.ledger


def read_script(path: str, name: str = "") -> Ledger:
    """Run the script of a file.  name: what it is called in errors, if not by its path."""
    with Path(path).open("rb") as file:
        data = file.read(MOST + 1)
    name = name or escape_text(path)
    if len(data) > MOST:
        raise InputError(f"{name}: this is no script: it has more than {MOST} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: this is no script: byte {error.start} is no text") from None
    return run_script(text, name)
