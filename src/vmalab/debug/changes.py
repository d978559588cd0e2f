"""What one record changes: every VMA that came, went, was split, merged, resized, or given other attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from vmalab.explain.obstacles import flag_words, single_bits
from vmalab.explain.story import describe, span
from vmalab.flags import VM_ACCESS, permissions
from vmalab.vma.observer import Observer

if TYPE_CHECKING:
    from vmalab.vma.area import Vma
    from vmalab.vma.space import Mm


@final
class Change:
    """One change of an address space: where, and what in words."""

    __slots__ = ("mm", "range", "text")

    def __init__(self, mm: Mm, start: int, end: int, text: str) -> None:
        self.mm = mm
        self.range = (start, end)
        """What it concerns, in bytes."""
        self.text = text
        """One line; it holds names from the trace, not escaped."""


@final
class Changes(Observer):
    """Collects the changes of one record."""

    def __init__(self) -> None:
        self.found: list[Change] = []

    def clear(self) -> None:
        """A new record begins."""
        if self.found:
            self.found = []

    def _add(self, vma: Vma, text: str) -> None:
        self.found.append(Change(vma.mm, vma.start, vma.end, text))

    def added(self, vma: Vma) -> None:
        self._add(vma, f"mapped {describe(vma)}")

    def removed(self, vma: Vma) -> None:
        self._add(vma, f"unmapped {describe(vma)}")

    def split(self, below: Vma, above: Vma) -> None:
        self.found.append(Change(below.mm, below.start, above.end, f"split {span(below)} from {span(above)}"))

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        self.found.append(Change(survivor.mm, start, end, f"merged {start:x}-{end:x} into {describe(survivor)}"))

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        low, high = min(old_start, vma.start), max(old_end, vma.end)
        self.found.append(Change(vma.mm, low, high, f"resized {old_start:x}-{old_end:x} to {span(vma)}"))

    def flags_changed(self, vma: Vma, old: int) -> None:
        parts = []
        if (vma.flags ^ old) & VM_ACCESS:
            parts.append(f"permissions of {span(vma)} from {permissions(old)} to {permissions(vma.flags)}")
        for bit in single_bits((vma.flags ^ old) & ~VM_ACCESS):
            parts.append(f"{span(vma)} {'now' if vma.flags & bit else 'no longer'}: {flag_words(bit)}")
        self._add(vma, "; ".join(parts) or f"flags of {span(vma)}")

    def attribute_changed(self, vma: Vma, what: str) -> None:
        if what == "anon_vma":
            how = "has no pages left" if vma.anon_vma is None else "was written to for the first time"
            self._add(vma, f"{span(vma)} {how}")
        else:
            self._add(vma, f"{what} of {span(vma)}")

    def forked(self, child: Mm, parent: Mm) -> None:
        self.found.append(Change(child, 0, 0, f"copied {child.map_count:,} of {parent.map_count:,} VMAs"))
