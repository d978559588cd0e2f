"""Named behaviours that differ between kernels.

The core reads a behaviour, never a version number.  Each attribute is read in one function and says what changed it.
"""

from typing import Final

from mypy_extensions import i64, mypyc_attr

from vmalab.flags import VM_MAYBE_GUARD, VM_SOFTDIRTY

THP_ALIGN_NEVER: Final = 0
THP_ALIGN_LARGE: Final = 1
THP_ALIGN_MULTIPLE: Final = 2


@mypyc_attr(allow_interpreted_subclasses=True)
class Semantics:
    """The behaviours of one kernel; the defaults are those of 6.18."""

    def __init__(self) -> None:
        self.ignored_flags: i64 = VM_SOFTDIRTY | VM_MAYBE_GUARD
        """VMA flags in which two VMAs may differ and still merge.  is_mergeable_vma."""
        self.sticky_flags: i64 = VM_MAYBE_GUARD
        """Ignored flags that the merged VMA has if either part had them.  Stable 6.18 has guard regions there."""
        self.unfaulted_merges: bool = True
        """A VMA that was written to merges with one that was not, whichever of them takes the other (6.16).  Before,
        the one that takes the other had to be the one that was written to.  is_mergeable_anon_vma."""
        self.guard_regions: bool = True
        """madvise knows MADV_GUARD_INSTALL and MADV_GUARD_REMOVE (6.13).  madvise_behavior_valid."""
        self.thp_align_anonymous: int = THP_ALIGN_MULTIPLE
        """Which anonymous mappings without a hint are aligned to huge pages: none before 6.7, then those of at least
        2 MiB, since 6.12 multiples of 2 MiB only.  __get_unmapped_area."""
        self.map_stack_no_hugepage: bool = True
        """MAP_STACK sets VM_NOHUGEPAGE (6.7).  calc_vm_flag_bits."""
        self.mremap_moves_many: bool = True
        """mremap to a fixed address of the same length moves several VMAs (6.17).  remap_move."""
        self.dontunmap_merges_source: bool = True
        """Memory that was never written to, moved with MREMAP_DONTUNMAP to where it touches itself, merges with the VMA
        that it comes from, so nothing has moved.  A bug of 6.18; 7.2 does not.  copy_vma."""
        self.mremap_shrink_charges: bool = True
        """mremap that shrinks and moves commits what it gives up once more, and nobody gives that back.  A bug of 6.18;
        a kernel without it was not seen.  move_vma."""
        self.mremap_uffd_merges_first: bool = True
        """A move is decided with the userfaultfd of the source; where it then merges, the neighbour loses its own as
        well.  A bug of 6.18; a kernel without it was not seen.  copy_vma, mremap_userfaultfd_prep."""
        self.dontunmap_unlocks_source: bool = True
        """MREMAP_DONTUNMAP of a part of a locked VMA unlocks all of it, and locked_vm keeps counting it.  A bug of
        6.18; a kernel without it was not seen.  dontunmap_complete."""
        self.anonymous_exclusive: bool = True
        """An anonymous page that a process has alone is marked so, and only such a page is written in place or pinned
        (5.19).  Before, a page that is mapped once was written in place, whoever else held it: CVE-2020-29374.
        do_wp_page, gup_must_unshare."""
        self.pins_break_cow: bool = True
        """A long-term pin that only reads gives a private mapping pages of its own first (6.2).  Before, it held the
        page of zeros or the file's, and went stale with the next write.  gup_must_unshare."""
        self.force_write_reads_again: bool = False
        """A forced write to read-only memory looks its page up as for a read, once the copy was made: if the copy is
        gone by then, it writes to the file's page.  Up to 4.8, CVE-2016-5195.  faultin_page."""
        self.anon_vma_reuse_counts_children: bool = True
        """fork takes over an ancestor's anon_vma only where no VMA uses it any more and at most one is below it (6.0).
        Before, users and children were one number, so that an anon_vma with a user and no child was taken over as
        well, and a page could outlive its anon_vma: CVE-2022-42703.  _is_abandoned (anon_vma_clone)."""
