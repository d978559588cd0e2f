"""The stage of a scene: an address space built from a strip, operations performed on it, and what it looks like."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import (
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    VM_ACCOUNT,
    VM_LOCKED,
    VM_MAYACCESS,
    VM_READ,
    VM_WRITE,
)
from vmalab.semantics import Semantics
from vmalab.testing.attributes import FLAGS, Attributes
from vmalab.testing.ports import FailingPort
from vmalab.testing.scene import Scene
from vmalab.vma.area import (
    FILE_OPS,
    HUGETLB_OPS,
    SECRET_OPS,
    SHMEM_OPS,
    SPECIAL_OPS,
    AnonVma,
    File,
    Policy,
    Userfaultfd,
    Vma,
    VmaOps,
)
from vmalab.vma.observer import Observer
from vmalab.vma.relocate import exit_mmap
from vmalab.vma.space import OVERCOMMIT_NEVER, Commit, Limits, Mm, Settings
from vmalab.vma.validate import violations_of_all

START_PAGE: Final = 0x1000
CLOSE_OPS: Final = VmaOps("close", has_close=True)
OPS: Final[dict[str, VmaOps | None]] = {
    "": None,
    "zero": None,
    "file": FILE_OPS,
    "close": CLOSE_OPS,
    "shmem": SHMEM_OPS,
    "hugetlb": HUGETLB_OPS,
    "special": SPECIAL_OPS,
    "secret": SECRET_OPS,
    "ext4": FILE_OPS,
}

KINDS: Final = {"zero": "zero", "hugetlb": "hugetlb", "shmem": "memfd", "secret": "secretmem"}

Shown = tuple[int, int, int, int, str, str, tuple[str, ...], str, str, str]
"""A VMA as it is compared: start and end page in the strip, flags, offset, file, driver, chain, and so on."""


class Names:
    """The names of a scene and what they stand for; what has none is given one when it is met."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.uffds: dict[str, Userfaultfd] = {}
        self.policies: dict[str, Policy] = {}
        self.anon_vmas: dict[str, AnonVma] = {}
        self._of: dict[int, str] = {}
        self._kept: list[object] = []

    def give(self, thing: object, name: str) -> None:
        """Call a thing by a name from now on."""
        self._of[id(thing)] = name
        self._kept.append(thing)

    def of(self, thing: object | None) -> str:
        """The name of a thing, `+` for one that has none, nothing for None."""
        return "" if thing is None else self._of.get(id(thing), "+")

    def file(self, attributes: Attributes) -> File | None:
        """The file that attributes name, or that their driver needs."""
        name = attributes.file or (attributes.driver and f"({attributes.driver})")
        if not name:
            return None
        if name not in self.files:
            ops = OPS[attributes.driver]
            file = File(name, kind=KINDS.get(attributes.driver, "regular"), ops=ops, private_ops=ops)
            file.fs = "ext4" if attributes.driver == "ext4" else ""
            file.huge_size = 0x200000 if attributes.driver == "hugetlb" else 0
            self.files[name] = file
            self.give(file, name)
        return self.files[name]

    def uffd(self, name: str) -> Userfaultfd | None:
        """The userfaultfd of a name; one whose name starts with `fork` or `move` wants to hear of those."""
        if not name:
            return None
        if name not in self.uffds:
            features = UFFD_FEATURE_EVENT_FORK if name.startswith("fork") else 0
            features |= UFFD_FEATURE_EVENT_REMAP if name.startswith("move") else 0
            self.uffds[name] = Userfaultfd(name, features)
            self.give(self.uffds[name], name)
        return self.uffds[name]

    def policy(self, name: str) -> Policy | None:
        """The policy of a name, one node for each."""
        if not name:
            return None
        if name not in self.policies:
            self.policies[name] = Policy(2, 0, (len(self.policies),))
            self.give(self.policies[name], name)
        return self.policies[name]

    def chain(self, names: tuple[str, ...]) -> tuple[AnonVma, ...]:
        """The anon_vmas of a chain, the youngest first; each is a child of the one that follows it."""
        parent: AnonVma | None = None
        chain: list[AnonVma] = []
        for name in reversed(names):
            if name not in self.anon_vmas:
                anon_vma = AnonVma(parent)
                if parent is not None:
                    parent.children += 1
                self.anon_vmas[name] = anon_vma
                self.give(anon_vma, name)
            parent = self.anon_vmas[name]
            chain.insert(0, parent)
        return tuple(chain)


class _Keeper(Observer):
    """Remembers children of fork."""

    def __init__(self) -> None:
        self.children: list[Mm] = []

    def forked(self, child: Mm, parent: Mm) -> None:
        self.children.append(child)


class Stage:
    """One run of a scene."""

    def __init__(self, scene: Scene, *, sanitise: bool = True) -> None:
        self.names = Names()
        self.port = FailingPort()
        self.wanted: Attributes = Attributes(0)
        settings, limits, semantics = Settings(), Limits(), Semantics()
        settings.sanitise = sanitise
        settings.stack_guard_gap = 4 * PAGE_SIZE
        given = scene.settings
        start_page = _number(given, "start", START_PAGE)
        self.base = start_page << PAGE_SHIFT
        settings.min_addr = self.base + _number(given, "min_page", 0) * PAGE_SIZE
        settings.dac_min_addr = settings.min_addr
        settings.max_map_count = _number(given, "max_map_count", 65530)
        settings.stack_guard_gap = _number(given, "guard_gap", 4) * PAGE_SIZE
        self.commit = Commit(_number(given, "ram", 1 << 20))
        if "never" in given:
            self.commit.mode = OVERCOMMIT_NEVER
            self.commit.kbytes = _number(given, "ram", 1 << 20) * 4
            self.commit.admin_reserve = self.commit.user_reserve = 0
        for setting, attribute in (("as", "as_bytes"), ("data", "data"), ("stack", "stack"), ("memlock", "memlock")):
            if f"limit_{setting}" in given:
                setattr(limits, attribute, _number(given, f"limit_{setting}", 0) * PAGE_SIZE)
        if "ignored" in given:
            semantics.ignored_flags = _flags(given["ignored"])
        if "sticky" in given:
            semantics.sticky_flags = _flags(given["sticky"])
        self.port.refuses = frozenset(given.get("refuses", "").split(","))
        self.mm = Mm(settings, self.commit, limits, semantics, self.port)
        self.mm.mdwe = "mdwe" in given
        self.mm.merge_any = "ksm" in given
        self.mm.def_flags = VM_LOCKED if "lockall" in given else 0
        self.mm.brk = self.mm.start_brk = self.base
        self.keeper = _Keeper()
        self.mm.observer = self.keeper
        self.letters: dict[int, str] = {}
        self._kept: list[Vma] = []
        self._digits = 0
        self._build(scene)

    # -- building -------------------------------------------------------------------------------------

    def addr(self, page: int) -> int:
        """The address of a page of the strip."""
        return self.base + page * PAGE_SIZE

    def page(self, addr: int) -> int:
        """The page of the strip at an address."""
        return (addr - self.base) >> PAGE_SHIFT

    def _build(self, scene: Scene) -> None:
        self.mm.mmap_write_lock()
        for letter, start, end in runs(scene.before):
            if letter != "*":
                vma = self.make(scene.attributes.get(letter, PLAIN), start, end)
                self._link(vma)
                self.call(vma, letter)
        self.mm.mmap_write_unlock()

    def make(self, attributes: Attributes, start: int, end: int) -> Vma:
        """A VMA of these attributes, not in the tree; what it holds is counted."""
        names = self.names
        vma = Vma(self.mm, self.addr(start), self.addr(end), attributes.flags, self.offset(attributes, start))
        vma.file = names.file(attributes)
        vma.ops = OPS[attributes.driver]
        vma.uffd = names.uffd(attributes.uffd)
        vma.name = attributes.name or None
        vma.policy = names.policy(attributes.policy)
        vma.take_references()
        chain = names.chain(attributes.chain)
        if chain:
            vma.anon_vma = chain[0]
            chain[0].active += 1
            vma.chain = chain
            for anon_vma in chain:
                anon_vma.links += 1
        return vma

    def offset(self, attributes: Attributes, start: int) -> int:
        """The page offset of memory with these attributes at a page of the strip."""
        if attributes.pgoff is not None:
            return attributes.pgoff
        base = 0 if attributes.file or attributes.driver else self.base >> PAGE_SHIFT
        return base + start + attributes.shift

    def _link(self, vma: Vma) -> None:
        mm = self.mm
        mm.link(vma)
        mm.vm_stat_account(vma.flags, vma.pages())
        if vma.flags & VM_ACCOUNT:
            self.commit.committed += vma.pages()
        if vma.flags & VM_LOCKED:
            mm.locked_vm += vma.pages()

    def call(self, vma: Vma, letter: str) -> None:
        """Call a VMA by a letter."""
        self.letters[id(vma)] = letter
        self._kept.append(vma)

    def vma(self, letter: str) -> Vma:
        """The VMA of a letter.  Raises KeyError if it is not mapped."""
        for vma in self.mm.vmas():
            if self.letters.get(id(vma)) == letter:
                return vma
        raise KeyError(letter)

    # -- looking --------------------------------------------------------------------------------------

    def name_new(self, mm: Mm) -> None:
        """Give each VMA that has no letter the next digit, from low addresses to high."""
        for vma in mm.vmas():
            if id(vma) not in self.letters:
                self._digits += 1
                self.call(vma, "0123456789abcdefghijklmnopqrstuvwxyz"[self._digits % 36])

    def strip(self, mm: Mm, width: int) -> str:
        """The address space as a strip."""
        cells = ["."] * width
        for vma in mm.vmas():
            for page in range(max(self.page(vma.start), 0), min(self.page(vma.end), width)):
                cells[page] = self.letters[id(vma)]
        return "".join(cells)

    def shown(self, vma: Vma) -> Shown:
        """A VMA with all that is compared, by name."""
        names = self.names
        return (
            self.page(vma.start),
            self.page(vma.end),
            vma.flags,
            vma.pgoff,
            names.of(vma.file),
            "" if vma.ops is None else vma.ops.name,
            tuple([names.of(anon_vma) for anon_vma in vma.chain]),
            "" if vma.uffd is None else vma.uffd.name,
            vma.name or "",
            names.of(vma.policy),
        )

    def state(self) -> list[object]:
        """Everything, to be compared with itself at another time."""
        found: list[object] = [self.commit.committed, self.commit.lost]
        for mm in self.spaces():
            found += [mm.map_count, mm.total_vm, mm.data_vm, mm.exec_vm, mm.stack_vm, mm.locked_vm, mm.lost_locked]
            for vma in mm.vmas():
                anon_vmas = [
                    (id(each), each.links, each.active, each.children) for each in [*vma.chain, vma.anon_vma] if each
                ]
                found += [id(vma), self.shown(vma), anon_vmas, id(vma.file), id(vma.policy), id(vma.uffd)]
        return found

    def spaces(self) -> list[Mm]:
        """The address space and its living children."""
        return [self.mm, *self.keeper.children]

    def problems(self) -> list[str]:
        """What is wrong by any recount."""
        return violations_of_all(self.commit, self.spaces())

    def leaks(self) -> list[str]:
        """Take everything down; what is left afterwards."""
        for mm in self.spaces():
            if mm.mmap_lock:
                return ["a lock is still held"]
            exit_mmap(mm)
        names = self.names
        found = [f"file {name} has {file.refs} references" for name, file in names.files.items() if file.refs]
        found += [f"policy {name} has {policy.refs}" for name, policy in names.policies.items() if policy.refs]
        found += [
            f"anon_vma {name} has {each.links} links and {each.active} users"
            for name, each in names.anon_vmas.items()
            if each.links or each.active
        ]
        if self.commit.committed != self.commit.lost:
            found.append(f"{self.commit.committed - self.commit.lost} pages stay committed")
        return found


PLAIN: Final = Attributes(VM_READ | VM_WRITE | VM_MAYACCESS | VM_ACCOUNT)
"""Private anonymous memory that can be read and written."""


def runs(strip: str) -> list[tuple[str, int, int]]:
    """Each run of one letter in a strip, with its first page and the page after its last; holes are left out."""
    found: list[tuple[str, int, int]] = []
    start = 0
    for page in range(1, len(strip) + 1):
        if page == len(strip) or strip[page] != strip[start]:
            if strip[start] not in ". ":
                found.append((strip[start], start, page))
            start = page
    return found


def marked(strip: str, mark: str = "*") -> tuple[int, int]:
    """The first page that a mark is on, and the page after the last; (0, 0) where there is none."""
    first = strip.find(mark)
    return (first, strip.rfind(mark) + 1) if first >= 0 else (0, 0)


def _number(settings: dict[str, str], key: str, default: int) -> int:
    return int(settings[key], 0) if key in settings else default


def _flags(words: str) -> int:
    flags = 0
    for word in words.split(","):
        flags |= FLAGS[word] if word else 0
    return flags
