"""Why VMAs that touch did not merge: every reason, from the decision itself.

The decision is asked about copies of the two.  The attribute that it names is repaired on a copy, and it is asked
again, until it says yes.  So this module holds no rule about merging, and no comparison of two VMAs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Final, final

from vmalab import reason
from vmalab.addr import PAGE_SHIFT
from vmalab.flags import (
    MNEMONICS,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_MAYSHARE,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_SPECIAL,
    VM_UFFD,
    permissions,
)
from vmalab.reason import Explanation, explain
from vmalab.vma.area import Policy, Vma
from vmalab.vma.merge import plan_existing_range, request_for_vma
from vmalab.vma.space import Mm

FLAG_WORDS: Final[dict[str, str]] = {
    "rd": "readable",
    "wr": "writable",
    "ex": "executable",
    "sh": "shared",
    "mr": "may be made readable",
    "mw": "may be made writable",
    "me": "may be made executable",
    "ms": "shared mapping",
    "gd": "grows down (MAP_GROWSDOWN)",
    "pf": "page frames without pages (PFNMAP)",
    "gu": "may hold guard regions",
    "lo": "locked in memory",
    "io": "device memory (IO)",
    "sr": "read sequentially (MADV_SEQUENTIAL)",
    "rr": "read at random (MADV_RANDOM)",
    "dc": "not copied on fork (MADV_DONTFORK)",
    "de": "cannot grow (DONTEXPAND)",
    "lf": "locked on fault",
    "ac": "committed memory (VM_ACCOUNT)",
    "nr": "no memory reserved (MAP_NORESERVE)",
    "ht": "huge pages (hugetlb)",
    "sf": "synchronous faults (MAP_SYNC)",
    "ar": "page attributes (PAT)",
    "wf": "wiped on fork (MADV_WIPEONFORK)",
    "dd": "not dumped (MADV_DONTDUMP)",
    "sd": "soft-dirty",
    "mm": "mixed pages (MIXEDMAP)",
    "hg": "huge-page advice (MADV_HUGEPAGE)",
    "nh": "no huge pages (MADV_NOHUGEPAGE)",
    "mg": "mergeable by KSM (MADV_MERGEABLE)",
    "um": "userfaultfd: missing",
    "uw": "userfaultfd: write-protect",
    "ui": "userfaultfd: minor",
    "ss": "shadow stack",
    "dp": "droppable (MAP_DROPPABLE)",
    "sl": "sealed (mseal)",
}
"""What each VmFlags mnemonic says of a VMA."""

OPENED_TWICE: Final = "the same file, opened twice"


class Sight(Enum):
    """How much of what a merge compares is known."""

    FULL = "full"
    """Everything: a trace in which faults were observed."""
    NO_FAULTS = "no faults"
    """A trace in which nobody observed faults: nothing counts as written to, but for what a list of VMAs shows."""
    SNAPSHOT = "snapshot"
    """What smaps shows, which is neither anon_vma, anonymous offset, policy, open file nor userfaultfd."""
    MAPS = "maps"
    """What maps shows: of the flags only the permissions."""

    def is_of_proc(self) -> bool:
        """Whether it is what /proc shows of a process, without its history."""
        return self in (Sight.SNAPSHOT, Sight.MAPS)


@final
class Obstacle:
    """One reason why two neighbours did not merge, with both values as text."""

    __slots__ = ("above", "below", "bits", "certain", "detail", "reason")

    def __init__(self, why: int, below: str, above: str, detail: str, bits: int = 0) -> None:
        self.reason: int = why
        """The Reason that the decision gave; 0 where the obstacle is one that cannot be seen."""
        self.bits: int = bits
        """The VM_ flags that differ, where it is those."""
        self.below: str = below
        self.above: str = above
        self.detail: str = detail
        """What differs, in words: groups boundaries of one kind."""
        self.certain: bool = why != 0
        """False where it depends on something that nobody saw."""

    def explanation(self) -> Explanation:
        """The reason's name, sentence and kernel function."""
        return explain(self.reason)

    @property
    def name(self) -> str:
        """The reason's name, or UNKNOWN."""
        return explain(self.reason).name if self.reason else "UNKNOWN"


@final
class Boundary:
    """Where two VMAs touch that did not merge, and all that stands between them."""

    __slots__ = ("above", "addr", "below", "obstacles")

    def __init__(self, below: Vma, above: Vma, obstacles: list[Obstacle]) -> None:
        self.addr: int = above.start
        self.below: Vma = below
        self.above: Vma = above
        self.obstacles: list[Obstacle] = obstacles

    def kind(self) -> str:
        """The obstacles in words: the same for boundaries of one kind."""
        return "; ".join([obstacle.detail for obstacle in self.obstacles])

    def is_within_file(self) -> bool:
        """The same open file on both sides, and nothing but flags and offsets between: segments of a library, say."""
        same = self.below.file is not None and self.below.file is self.above.file
        return same and all(
            each.reason in (reason.FLAGS_DIFFER, reason.OFFSET_NOT_CONTIGUOUS) for each in self.obstacles
        )

    def is_foreign(self) -> bool:
        """Whether the two are of different things: different files, or memory of a driver."""
        return any(
            each.reason in (reason.SPECIAL_VMA, reason.CLOSE_HOOK)
            or (each.reason == reason.FILE_DIFFERS and each.detail != OPENED_TWICE)
            for each in self.obstacles
        )


def merge_refusal(below: Vma, above: Vma) -> int:
    """What the merge says of a VMA and the one below it: YES or the first Reason."""
    request = request_for_vma(above, above.start, above.end)
    request.middle = above
    request.prev = below
    left, _ = plan_existing_range(request)
    return left


def detached_copy(vma: Vma) -> Vma:
    """A copy that belongs to no tree and holds no references, chain of anon_vmas included."""
    copy = vma.duplicate()
    copy.chain = vma.chain
    return copy


def find_obstacles(below: Vma, above: Vma, sight: Sight = Sight.FULL) -> list[Obstacle]:
    """Everything that keeps a VMA from merging with the one below it; nothing if they would merge.

    In a snapshot, where nothing that can be seen is in the way, the one obstacle is UNKNOWN and says what it may be.
    """
    left = detached_copy(below)
    right = detached_copy(above)
    found: list[Obstacle] = []
    while True:
        refusal = merge_refusal(left, right)
        if refusal == reason.YES:
            break
        if not (sight.is_of_proc() and refusal in _CANNOT_BE_SEEN):
            found.extend(_describe(refusal, left, right))
        _REPAIRS[refusal](left, right)
    if sight.is_of_proc() and not found:
        hidden = _hidden_text(above, flags=sight is Sight.MAPS)
        found.append(Obstacle(0, "unknown", "unknown", f"unknown: {hidden}"))
    if sight is Sight.NO_FAULTS:
        for obstacle in found:
            obstacle.certain = not _depends_on_faults(obstacle, above)
    return found


def boundaries(mm: Mm, sight: Sight = Sight.FULL) -> Iterator[Boundary]:
    """All places of an address space where two VMAs touch that do not merge, in the order of their addresses."""
    below: Vma | None = None
    for vma in mm.vmas():
        if below is not None and below.end == vma.start:
            found = find_obstacles(below, vma, sight)
            if found:
                yield Boundary(below, vma, found)
        below = vma


def count_merges(found: Iterable[Boundary]) -> int:
    """How many VMAs would go if nothing stood between the two sides of these boundaries, given in order of address.

    Each is repaired on a copy and really merged.  It may be fewer than there are boundaries: two that were written to
    apart do not merge across a third that was not.
    """
    count = 0
    left: Vma | None = None
    for boundary in found:
        if left is None or left.end != boundary.below.end:
            left = detached_copy(boundary.below)
        right = detached_copy(boundary.above)
        repairable = {obstacle.reason for obstacle in boundary.obstacles}
        while (refusal := merge_refusal(left, right)) in repairable and refusal != reason.YES:
            _REPAIRS[refusal](left, right)
        if refusal != reason.YES:
            left = right
            continue
        count += 1
        left.end = right.end
        if left.anon_vma is None:
            left.anon_vma = right.anon_vma
            left.chain = right.chain
    return count


# -- repairs: make the named attribute of the copies agree ------------------------------------------------


# It is the range above that asks to be merged, so the one below is made as that one asks.


def _repair_policy(left: Vma, right: Vma) -> None:
    left.policy = right.policy


def _repair_flags(left: Vma, right: Vma) -> None:
    left.flags = right.flags


def _repair_file(left: Vma, right: Vma) -> None:
    if _file_detail(left, right) != OPENED_TWICE:
        # An offset in one file says nothing about another: take the place in the same file that fits.
        _repair_offset(left, right)
    left.file = right.file
    left.ops = right.ops


def _repair_uffd(left: Vma, right: Vma) -> None:
    left.uffd = right.uffd


def _repair_name(left: Vma, right: Vma) -> None:
    left.name = right.name


def _repair_anon_vma(left: Vma, right: Vma) -> None:
    left.anon_vma = right.anon_vma = None
    left.chain = ()
    right.chain = ()


def _repair_offset(left: Vma, right: Vma) -> None:
    left.pgoff = right.pgoff - left.pages()


def _repair_special(left: Vma, right: Vma) -> None:
    left.flags = left.flags & ~VM_SPECIAL
    right.flags = right.flags & ~VM_SPECIAL


def _repair_close_hook(left: Vma, right: Vma) -> None:
    left.ops = right.ops = None


_REPAIRS: Final[dict[int, Callable[[Vma, Vma], None]]] = {
    reason.POLICY_DIFFERS: _repair_policy,
    reason.FLAGS_DIFFER: _repair_flags,
    reason.FILE_DIFFERS: _repair_file,
    reason.UFFD_DIFFERS: _repair_uffd,
    reason.NAME_DIFFERS: _repair_name,
    reason.ANON_VMA_DIFFERS: _repair_anon_vma,
    reason.ANON_VMA_OF_FORK: _repair_anon_vma,
    reason.OFFSET_NOT_CONTIGUOUS: _repair_offset,
    reason.SPECIAL_VMA: _repair_special,
    reason.CLOSE_HOOK: _repair_close_hook,
}

_CANNOT_BE_SEEN: Final = frozenset(
    {reason.ANON_VMA_DIFFERS, reason.ANON_VMA_OF_FORK, reason.UFFD_DIFFERS, reason.POLICY_DIFFERS}
)


def _depends_on_faults(obstacle: Obstacle, above: Vma) -> bool:
    """Whether it would be otherwise if other pages had been written to."""
    if obstacle.reason == reason.OFFSET_NOT_CONTIGUOUS:
        return above.is_anonymous()
    return obstacle.bits == VM_ACCOUNT or obstacle.reason in (reason.ANON_VMA_DIFFERS, reason.ANON_VMA_OF_FORK)


# -- words ----------------------------------------------------------------------------------------------


def _hidden_text(vma: Vma, *, flags: bool) -> str:
    """What may keep a VMA from its neighbour below where all that /proc shows is equal; flags: they are hidden too."""
    parts = [OPENED_TWICE] if vma.file is not None else []
    if flags:
        parts.insert(0, "flags that only smaps shows")
    if not vma.flags & VM_MAYSHARE:
        parts.append("written to apart (separate anon_vmas, or shared through fork)")
        if vma.is_anonymous():
            parts.append("anonymous offset (moved)")
    parts.append("memory policy")
    if vma.flags & VM_UFFD:
        parts.append("registered with different userfaultfds")
    return f"one of: {', '.join(parts)}; /proc shows none of them"


def _describe(refusal: int, left: Vma, right: Vma) -> list[Obstacle]:
    if refusal == reason.FLAGS_DIFFER:
        return _describe_flags(left, right)
    words = {
        reason.POLICY_DIFFERS: (policy_text(left.policy), policy_text(right.policy), "memory policy"),
        reason.FILE_DIFFERS: (_file_text(left), _file_text(right), _file_detail(left, right)),
        reason.UFFD_DIFFERS: (_uffd_text(left), _uffd_text(right), "registered with different userfaultfds"),
        reason.NAME_DIFFERS: (left.name or "none", right.name or "none", "anonymous name"),
        reason.ANON_VMA_DIFFERS: (_anon_text(left), _anon_text(right), "written to apart (separate anon_vmas)"),
        reason.ANON_VMA_OF_FORK: (_anon_text(left), _anon_text(right), "pages shared through fork"),
        reason.OFFSET_NOT_CONTIGUOUS: (
            f"ends at {_offset_text(left, left.pgoff + left.pages())}",
            f"starts at {_offset_text(right, right.pgoff)}",
            _offset_detail(right),
        ),
        reason.SPECIAL_VMA: (
            _flag_letters(left.flags & VM_SPECIAL),
            _flag_letters(right.flags & VM_SPECIAL),
            "special VMA",
        ),
        reason.CLOSE_HOOK: (_driver_text(left), _driver_text(right), "close hook"),
    }
    below, above, detail = words[refusal]
    return [Obstacle(refusal, below, above, detail)]


def _flag_letters(flags: int) -> str:
    return " ".join([letters for letters, bit in MNEMONICS.items() if flags & bit]) or "none"


def _describe_flags(left: Vma, right: Vma) -> list[Obstacle]:
    """One obstacle for the permissions, and one for each other flag that differs."""
    bits = [bit for bit in single_bits(left.flags ^ right.flags) if _is_refused_for(bit, left, right)]
    access = sum(bit for bit in bits if bit & VM_ACCESS)
    found: list[Obstacle] = []
    if access:
        below, above = permissions(left.flags), permissions(right.flags)
        found.append(Obstacle(reason.FLAGS_DIFFER, below, above, "permissions", access))
    for bit in bits:
        if not bit & (VM_ACCESS | VM_PKEY_MASK):
            below, above = ("yes", "no") if left.flags & bit else ("no", "yes")
            found.append(Obstacle(reason.FLAGS_DIFFER, below, above, flag_words(bit), bit))
    if any(bit & VM_PKEY_MASK for bit in bits):
        keys = [str((vma.flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT) for vma in (left, right)]
        found.append(Obstacle(reason.FLAGS_DIFFER, keys[0], keys[1], "protection key", VM_PKEY_MASK))
    return found


def _is_refused_for(bit: int, left: Vma, right: Vma) -> bool:
    """Whether the two would not merge for this flag, were all others the same: some flags are not compared."""
    probe = detached_copy(left)
    probe.flags = right.flags & ~bit | left.flags & bit
    return merge_refusal(probe, right) == reason.FLAGS_DIFFER


def single_bits(word: int) -> list[int]:
    """The single bits of a word, the lowest first."""
    return [1 << i for i in range(word.bit_length()) if word >> i & 1]


_LETTERS: Final = {bit: letters for letters, bit in MNEMONICS.items()}


def flag_words(bit: int) -> str:
    """What one flag says of a VMA."""
    if bit & VM_PKEY_MASK:
        return "protection key"
    letters = _LETTERS.get(bit)
    return FLAG_WORDS[letters] if letters is not None else f"flag {bit:#x}"


def policy_text(policy: Policy | None) -> str:
    """A memory policy in a few words, for instance bind:0,1."""
    names = ("default", "preferred", "bind", "interleave", "local", "preferred-many", "weighted-interleave")
    if policy is None:
        return "default"
    nodes = ",".join(map(str, policy.nodes))
    home = f" home {policy.home_node}" if policy.home_node >= 0 else ""
    return f"{names[policy.mode]}{':' if nodes else ''}{nodes}{home}"


def _file_text(vma: Vma) -> str:
    file = vma.file
    if file is None:
        return vma.label or "anonymous"
    return f"{file.path} ({file.dev} {file.ino})" if file.ino else file.path


def _file_detail(left: Vma, right: Vma) -> str:
    one, other = left.file, right.file
    if one is None or other is None:
        there = left if one is None else right
        return "file and anonymous memory" if there.is_anonymous() else "file and other memory"
    if one.ino and (one.dev, one.ino) == (other.dev, other.ino):
        return OPENED_TWICE
    return "different files"


def _uffd_text(vma: Vma) -> str:
    return vma.uffd.name if vma.uffd is not None else "none"


def _anon_text(vma: Vma) -> str:
    if vma.anon_vma is None:
        return "never written to"
    return "shared with a process it was forked from" if len(vma.chain) > 1 else "written to"


def _driver_text(vma: Vma) -> str:
    return vma.ops.name if vma.ops is not None else "no driver"


def _offset_detail(vma: Vma) -> str:
    if vma.file is not None:
        return "file offset"
    return "anonymous offset (it was moved)" if vma.is_anonymous() else "offset"


def _offset_text(vma: Vma, pgoff: int) -> str:
    return hex(pgoff << PAGE_SHIFT) if vma.file is not None else f"page {pgoff:#x}"
