"""The pages below the VMAs: page tables, folios, faults, copy-on-write, pins, swap, huge pages."""
