"""What one record changes: every VMA that came, went, was split, merged, resized, or given other attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from vmalab.addr import PAGE_SIZE
from vmalab.explain.story import attribute_change, described, flag_changes
from vmalab.vma.observer import Observer

if TYPE_CHECKING:
    from vmalab.vma.area import Vma
    from vmalab.vma.space import Mm


@final
class Change:
    """One change of an address space: where, and what.  Put into words only when somebody asks."""

    __slots__ = ("after", "before", "flags", "kind", "mm", "name", "range")

    def __init__(self, kind: str, vma: Vma, before: tuple[int, int], old: int = 0, what: str = "") -> None:
        self.kind = kind
        """The callback of Observer that told it."""
        self.mm: Mm = vma.mm
        self.after: tuple[int, int] = (vma.start, vma.end)
        """The bounds of the VMA it is about, after it."""
        self.before = before
        """Other bounds that belong to it: of the part merged or split off, or those before."""
        self.range = (min(vma.start, before[0]), max(vma.end, before[1]))
        """What it concerns, in bytes: of a split the pages on both sides of the new edge, of a merge what came in."""
        if kind == "merged":
            self.range = before
        elif kind == "split":
            self.range = (before[0] - PAGE_SIZE, before[0] + PAGE_SIZE)
        self.flags: tuple[int, int] = (old, vma.flags)
        self.name: str = what or vma.shown_name()

    @property
    def text(self) -> str:
        """One line; it holds names from the trace, not escaped."""
        start, end = self.after
        here = f"{start:x}-{end:x}"
        other = f"{self.before[0]:x}-{self.before[1]:x}"
        whole = described(start, end, self.flags[1], self.name)
        if self.kind in ("mapped", "unmapped"):
            return f"{self.kind} {whole}"
        if self.kind == "split":
            return f"split {here} from {other}"
        if self.kind == "merged":
            return f"merged {other} into {whole}"
        if self.kind == "resized":
            return f"resized {other} to {here}"
        if self.kind == "flags":
            return f"{here} {'; '.join(flag_changes(*self.flags))}"
        if self.kind == "copied":
            return f"copied {self.name} VMAs"
        return f"{here} {attribute_change(self.name, there=self.flags[0] != 0)}"


@final
class Changes(Observer):
    """Collects the changes of one record."""

    def __init__(self) -> None:
        self.found: list[Change] = []

    def clear(self) -> None:
        """A new record begins."""
        if self.found:
            self.found = []

    def _add(self, kind: str, vma: Vma, old: int = 0, what: str = "") -> None:
        self.found.append(Change(kind, vma, (vma.start, vma.end), old, what))

    def added(self, vma: Vma) -> None:
        self._add("mapped", vma)

    def removed(self, vma: Vma) -> None:
        self._add("unmapped", vma)

    def split(self, below: Vma, above: Vma) -> None:
        self.found.append(Change("split", below, (above.start, above.end)))

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        self.found.append(Change("merged", survivor, (start, end)))

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        self.found.append(Change("resized", vma, (old_start, old_end)))

    def flags_changed(self, vma: Vma, old: int) -> None:
        self._add("flags", vma, old)

    def attribute_changed(self, vma: Vma, what: str) -> None:
        self._add("attribute", vma, int(vma.anon_vma is not None), what)

    def forked(self, child: Mm, parent: Mm) -> None:
        vmas = child.vmas()
        if vmas:
            self._add("copied", vmas[0], what=f"{child.map_count:,} of {parent.map_count:,}")
