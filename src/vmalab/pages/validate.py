"""Whether a machine's pages are counted right: everything that refers to a folio, counted anew."""

from __future__ import annotations

from vmalab.addr import PAGE_SHIFT
from vmalab.pages import hugetlb
from vmalab.pages.folio import ANON, HUGETLB, KSM, ZERO, Folio, MigrationEntry, SwapSlot
from vmalab.pages.memory import Memory
from vmalab.pages.table import PMD_SHIFT, PRESENT, WRITE, Huge, Tables
from vmalab.vma.area import Vma


class _Count:
    """What was found to refer to a folio."""

    def __init__(self, folio: Folio) -> None:
        self.folio = folio
        self.entire = 0
        self.mapped = 0
        self.cached = 0
        self.writers = 0


def violations_of_memory(memory: Memory) -> list[str]:
    """All that is wrong with the counts of folios, of swap and of address spaces; empty if nothing is.

    References that are neither mappings nor caches must be pins, or be held by somebody: they can only be too few.
    """
    found: list[str] = []
    counts: dict[int, _Count] = {}
    slots: dict[int, tuple[SwapSlot, int]] = {}
    for tables in memory.all_tables():
        found += _count_tables(memory, tables, counts, slots)
        found += _reverse_map_faults(tables)
        found += memory.rmap.violations(tables.mm.vmas())
    for cache in memory.caches():
        end = 0
        for folio in cache.folios():
            if folio.cache is not cache or folio.index < end:
                found.append(f"{folio!r} is in the cache at {folio.index}, where another ends at {end}")
            end = folio.index + folio.count()
            counts.setdefault(id(folio), _Count(folio)).cached += folio.cache_references()
    for slot, references in slots.values():
        if slot.count != references:
            found.append(f"a swap slot counts {slot.count} references, and has {references}")
        if slot.cache is not None:
            counts.setdefault(id(slot.cache), _Count(slot.cache)).cached += 1
    if memory.swapped != len(slots):
        found.append(f"{memory.swapped} swap slots are counted, {len(slots)} are referred to")
    for count in counts.values():
        found += _violations_of(count)
        if id(count.folio) in memory.moving and count.entire + count.mapped:
            found.append(f"{count.folio!r} is mapped while it is being moved")
    found += hugetlb.violations(memory)
    return found


def _count_tables(
    memory: Memory, tables: Tables, counts: dict[int, _Count], slots: dict[int, tuple[SwapSlot, int]]
) -> list[str]:
    """Count what an address space maps; what is wrong with its own counters."""
    swap = anon = file = hugetlb = 0
    huges: list[Huge] = list(tables.puds.values())
    for entry in tables.pmds.values():
        if isinstance(entry, Huge):
            huges.append(entry)
            continue
        for each, bits in zip(entry.pages, entry.bits, strict=True):
            if isinstance(each, SwapSlot):
                swap += 1
                slots[id(each)] = (each, slots.get(id(each), (each, 0))[1] + 1)
            elif isinstance(each, MigrationEntry):
                anon, file = (anon + 1, file) if each.folio.flags & ANON else (anon, file + 1)
                if each.done:
                    return ["an entry waits for a folio that has arrived"]
            elif each is not None and not each.flags & ZERO:
                count = counts.setdefault(id(each), _Count(each))
                count.mapped += 1
                count.writers += 1 if bits & WRITE else 0
                anon, file = (anon + 1, file) if each.flags & ANON else (anon, file + 1)
    for huge in huges:
        folio = huge.folio
        if folio.flags & ZERO:
            continue
        if huge.bits & PRESENT:
            count = counts.setdefault(id(folio), _Count(folio))
            count.entire += 1
            count.writers += 1 if huge.bits & WRITE else 0
        elif id(folio) not in memory.moving:
            return ["a huge entry is not present, and its folio is not being moved"]
        if folio.flags & HUGETLB:
            hugetlb += folio.count()
        elif folio.flags & ANON:
            anon += folio.count()
        else:
            file += folio.count()
    ours = (tables.swap, tables.anon, tables.file, tables.hugetlb)
    real = (swap, anon, file, hugetlb)
    return [] if ours == real else [f"an address space counts swap, anon, file, hugetlb {ours}, and has {real}"]


def _reverse_map_faults(tables: Tables) -> list[str]:
    """Anonymous pages that are not found from their anon_vma, since the VMA that maps them is not chained to it."""
    found: list[str] = []
    for number, entry in tables.pmds.items():
        folios = [(0, entry.folio)] if isinstance(entry, Huge) else list(enumerate(entry.pages))
        vma: Vma | None = None
        for at, folio in folios:
            if not isinstance(folio, Folio) or not folio.flags & ANON:
                continue
            addr = (number << PMD_SHIFT) + (at << PAGE_SHIFT)
            if vma is None or not vma.start <= addr < vma.end:
                vma = tables.mm.vma_lookup(addr)
            fault = "no VMA is there" if vma is None else reverse_map_fault(vma, folio)
            if fault:
                found.append(f"{folio!r} at {addr:#x}: {fault}")
    return found


def reverse_map_fault(vma: Vma, folio: Folio) -> str:
    """Why reclaim or migration does not find a VMA from the anonymous folio that it maps; empty if it does."""
    if folio.flags & KSM:
        # It is found from the list of who shares it.
        return ""
    anon_vma = folio.anon_vma
    if anon_vma is not None and vma.has_in_chain(anon_vma):
        return ""
    if anon_vma is not None and anon_vma.links == 0:
        return "its anon_vma is freed"
    return "its anon_vma does not lead to the VMA that maps it"


def _violations_of(count: _Count) -> list[str]:
    folio = count.folio
    found: list[str] = []
    if (folio.entire, folio.mapped) != (count.entire, count.mapped):
        found.append(f"{folio!r} has {count.entire} entire and {count.mapped} single mappings")
    least = count.entire + count.mapped + count.cached + folio.pins
    if folio.refs < least:
        found.append(f"{folio!r} is referred to {least} times")
    if folio.flags & ANON and folio.exclusive and folio.maybe_mapped_shared() and folio.order == 0:
        found.append(f"{folio!r} is marked exclusive, and mapped by several")
    if folio.flags & ANON and count.writers and not folio.exclusive:
        found.append(f"{folio!r} is mapped writable, and not exclusive")
    return found
