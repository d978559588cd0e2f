"""Ports for tests.  The port that does nothing is vmalab.vma.port.Port itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmalab.reason import DRIVER_REFUSES_MAP, DRIVER_REFUSES_MOVE, DRIVER_REFUSES_SPLIT, YES
from vmalab.vma.port import SITE_NAMES, Port

if TYPE_CHECKING:
    from vmalab.vma.area import Vma

Event = tuple[str, "Vma", int, int]
"""What happened, to which VMA, and two numbers: a range in bytes, or old bounds; 0 where there is none."""


class RecordingPort(Port):
    """Remembers every effect, in order.  A VMA among the events may have been freed since."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def unmap_pages(self, vma: Vma, start: int, end: int) -> None:
        self.events.append(("unmap", vma, start, end))

    def move_pages(self, vma: Vma, new_vma: Vma, old: int, new: int, length: int) -> int:
        self.events.append(("move", new_vma, old, new))
        return length

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        self.events.append(("resize", vma, old_start, old_end))

    def anon_vma_changed(self, vma: Vma) -> None:
        self.events.append(("anon_vma", vma, 0, 0))

    def opened(self, vma: Vma) -> None:
        self.events.append(("open", vma, 0, 0))

    def closed(self, vma: Vma) -> None:
        self.events.append(("close", vma, 0, 0))

    def mapped(self, vma: Vma) -> int:
        self.events.append(("map", vma, 0, 0))
        return YES

    def moved(self, vma: Vma) -> int:
        self.events.append(("moved", vma, 0, 0))
        return YES


class FailingPort(RecordingPort):
    """Fails one allocation, chosen by its number, and says which site that was.  A driver can be made to refuse.

    Moving page tables is one more allocation: the failure leaves the second half where it was.
    """

    PAGE_TABLE = "page table"

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        """Allocations since arm()."""
        self.sites: list[str] = []
        """The sites of the allocations since arm()."""
        self.failed = ""
        """The site that failed, empty if none has."""
        self.refuses: frozenset[str] = frozenset()
        """What the driver says no to: split, map, move."""
        self._fail_at = 0

    def arm(self, number: int) -> None:
        """Fail the allocation with this number, counted from 1 and from now on; 0 fails none."""
        self._fail_at = number
        self.count = 0
        self.sites = []
        self.failed = ""

    def _fails(self, site: str) -> bool:
        self.count += 1
        self.sites.append(site)
        if self.count != self._fail_at:
            return False
        self.failed = site
        return True

    def may_fail(self, site: int) -> bool:
        return self._fails(SITE_NAMES[site])

    def move_pages(self, vma: Vma, new_vma: Vma, old: int, new: int, length: int) -> int:
        super().move_pages(vma, new_vma, old, new, length)
        return length // 2 if self._fails(self.PAGE_TABLE) else length

    def may_split(self, vma: Vma, addr: int) -> int:
        return DRIVER_REFUSES_SPLIT if "split" in self.refuses else YES

    def mapped(self, vma: Vma) -> int:
        super().mapped(vma)
        return DRIVER_REFUSES_MAP if "map" in self.refuses else YES

    def moved(self, vma: Vma) -> int:
        super().moved(vma)
        return DRIVER_REFUSES_MOVE if "move" in self.refuses else YES
