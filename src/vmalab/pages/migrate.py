"""Moving a folio to another place in memory, in two steps that a test can look between (mm/migrate.c).

While a folio is under way, the entries that mapped it are migration entries.  An access waits until it has arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from vmalab.addr import PAGE_SHIFT
from vmalab.pages.folio import ANON, HUGETLB, KSM, ZERO, Folio, MigrationEntry, SwapSlot
from vmalab.pages.folio import DIRTY as FOLIO_DIRTY
from vmalab.pages.memory import Memory
from vmalab.pages.table import (
    DIRTY,
    ENTRIES,
    PAGE_AT,
    PMD_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    SWAP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Leaf,
    Tables,
    pte_index,
)
from vmalab.reason import FAULT_NO_MEMORY, MIGRATE_HELD, MIGRATE_NOTHING, MIGRATE_PINNED, YES
from vmalab.vma.area import Vma
from vmalab.vma.space import Mm


@final
class Migration:
    """A folio that is being moved.  `finish` puts an end to it, whatever has happened to its mappings meanwhile."""

    def __init__(self, memory: Memory, old: Folio, new: Folio) -> None:
        self.memory: Memory = memory
        self.old: Folio = old
        self.new: Folio = new
        """Where it goes: empty until it arrives."""
        self.entry: MigrationEntry = MigrationEntry(old)
        """What page tables refer to meanwhile."""
        self.on_end: Callable[[], None] | None = None
        """Who is to know when it is over: whoever waits goes on then."""

    @property
    def done(self) -> bool:
        """Whether it is over, one way or the other."""
        return self.entry.done

    def finish(self, moved: bool = True) -> int:
        """Let the folio arrive: YES, or MIGRATE_HELD where somebody holds it, so that it stays where it was.

        moved: False where it is not to arrive; it stays where it was, and the answer is YES.
        """
        assert not self.done, "a migration ends once"
        memory, old, new = self.memory, self.old, self.new
        refusal = YES
        if moved and old.refs != _expected_refs(old):
            moved, refusal = False, MIGRATE_HELD
        if moved:
            _move_to_new_folio(memory, old, new)
        target = new if moved else old
        del memory.moving[id(old)]
        for tables, addr, page in _places(memory, target):
            _remove_migration_entry(memory, tables, addr, page, self.entry, target)
        self.entry.done = True
        memory.put(old)
        memory.put(new)
        if self.on_end is not None:
            self.on_end()
        return refusal


def begin(memory: Memory, mm: Mm, addr: int) -> tuple[Migration | None, int]:
    """Take the folio at an address out of all page tables, as the start of a migration: it, or None and a reason.

    MIGRATE_NOTHING, MIGRATE_PINNED, FAULT_NO_MEMORY.  That somebody else holds the folio is found at the end.
    """
    old, bits, _ = memory.tables(mm).entry(addr)
    if not isinstance(old, Folio) or not bits & PRESENT or old.flags & ZERO or id(old) in memory.moving:
        return None, MIGRATE_NOTHING
    if old.flags & HUGETLB:
        new = memory.alloc_hugetlb(mm, old.order, old.flags)
    else:
        new = memory.alloc(mm, old.order, old.flags)
    if new is None:
        return None, FAULT_NO_MEMORY
    memory.get(old)
    migration = Migration(memory, old, new)
    memory.moving[id(old)] = migration.entry
    for tables, at, page in _places(memory, old):
        if not _try_to_migrate(memory, tables, at, page, migration.entry):
            migration.finish(moved=False)
            return None, MIGRATE_PINNED
    return migration, YES


def _places(memory: Memory, folio: Folio) -> list[tuple[Tables, int, int]]:
    """Where a folio can be mapped (rmap_walk).  Pages that KSM has merged are looked for everywhere."""
    if not folio.flags & KSM:
        return memory.places_of(folio)
    return [
        (tables, (number << PMD_SHIFT) + (at << PAGE_SHIFT), 0)
        for tables in memory.all_tables()
        for number, leaf in tables.pmds.items()
        if isinstance(leaf, Leaf)
        for at in range(ENTRIES)
        if leaf.pages[at] is folio or (isinstance(leaf.pages[at], MigrationEntry))
    ]


def _expected_refs(folio: Folio) -> int:
    """How many references a folio has that is in no page table, and that nobody but who moves it holds."""
    return 1 + folio.cache_references() + (1 if folio.swap is not None else 0)


def _try_to_migrate(memory: Memory, tables: Tables, addr: int, page: int, entry: MigrationEntry) -> bool:
    """Put a migration entry where a folio is mapped (try_to_migrate_one); False where a device may have it pinned."""
    folio = entry.folio
    huge = tables.huge(addr)
    if huge is not None:
        if page or huge.folio is not folio or not huge.bits & PRESENT:
            return True
        bits, entire = huge.bits, True
    else:
        leaf = tables.leaf(addr)
        if leaf is None:
            return True
        at = pte_index(addr)
        bits, entire = leaf.bits[at], False
        if leaf.pages[at] is not folio or bits >> PAGE_AT != page:
            return True
    exclusive = folio.flags & ANON != 0 and folio.is_exclusive(page)
    if exclusive and tables.has_pinned and folio.pins:
        return False
    if bits & DIRTY:
        folio.flags |= FOLIO_DIRTY
    bits &= ~PRESENT
    if exclusive:
        folio.exclusive &= ~(1 << page) if not entire else 0
        if not bits & WRITE:
            bits |= SWAP_EXCLUSIVE
    if huge is not None:
        huge.bits = bits
    elif leaf is not None:
        leaf.bits[at] = bits
        leaf.pages[at] = entry
    memory.remove_mapping(tables, folio, 1, entire=entire)
    # It counts as if it were there.
    memory.account(tables, folio, folio.count() if entire else 1)
    memory.put(folio)
    return True


def _remove_migration_entry(
    memory: Memory, tables: Tables, addr: int, page: int, entry: MigrationEntry, target: Folio
) -> None:
    """Map a folio where a migration entry stands for it (remove_migration_pte)."""
    huge = tables.huge(addr)
    leaf = None if huge is not None else tables.leaf(addr)
    at = pte_index(addr)
    if huge is not None:
        if page or huge.folio is not entry.folio or huge.bits & PRESENT:
            return
        old = huge.bits
    else:
        if leaf is None or leaf.pages[at] is not entry or leaf.bits[at] >> PAGE_AT != page:
            return
        old = leaf.bits[at]
    bits = PRESENT | old & (YOUNG | SOFT_DIRTY) | page << PAGE_AT
    if old & DIRTY and target.flags & FOLIO_DIRTY:
        bits |= DIRTY
    bits |= WRITE if old & WRITE else old & UFFD_WP
    if target.flags & ANON and old & (WRITE | SWAP_EXCLUSIVE):
        target.exclusive |= 1 << page if huge is None else target.all_exclusive()
    memory.get(target)
    memory.account(tables, target, -(target.count() if huge is not None else 1))
    memory.add_mapping(tables, target, 1, entire=huge is not None)
    if huge is not None:
        huge.folio = target
        huge.bits = bits
    elif leaf is not None:
        leaf.pages[at] = target
        leaf.bits[at] = bits


def _move_to_new_folio(memory: Memory, old: Folio, new: Folio) -> None:
    """Everything that is the folio's goes to the new one: contents, marks, its place in a cache (move_to_new_folio)."""
    new.flags = old.flags
    new.index = old.index
    new.anon_vma = old.anon_vma
    new.copy_from(old)
    if old.sharers is not None:
        new.sharers = {}
    cache = old.cache
    if cache is not None:
        memory.evict(old)
        cache.add(new)
        memory.get(new, new.cache_references())
    slot = old.swap
    if slot is not None:
        old.swap, new.swap = None, slot
        slot.cache = new
        memory.get(new)
        memory.put(old)


def entry_of(memory: Memory, vma: Vma, addr: int) -> MigrationEntry | None:
    """What an access to an address waits for; None where nothing is being moved there."""
    entry, bits, _ = memory.tables(vma.mm).entry(addr)
    if isinstance(entry, MigrationEntry):
        return entry
    folio = entry if isinstance(entry, Folio) and not bits & PRESENT else None
    if isinstance(entry, SwapSlot):
        folio = entry.cache
    elif entry is None and vma.file is not None:
        folio = memory.cache_of(vma.file).find(vma.pgoff_at(addr))
    return None if folio is None else memory.moving.get(id(folio))


def downgraded(folio: Folio, bits: int) -> int:
    """The bits of a migration entry that is not to become writable when it ends, as they say (change_pte_range)."""
    if not bits & WRITE:
        return bits
    return bits & ~WRITE | (SWAP_EXCLUSIVE if folio.flags & ANON else 0)


def kind_of(bits: int) -> str:
    """What a migration entry will be: writable, readable-exclusive or readable."""
    return "writable" if bits & WRITE else "readable-exclusive" if bits & SWAP_EXCLUSIVE else "readable"
