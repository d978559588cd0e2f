"""What must hold of address spaces at rest: the tree, the counters, the anon_vmas, the accounts.

Each check recounts from the VMAs alone.  Where this kernel itself loses count, the core has noted by how much
(Commit.lost, Mm.lost_locked), so that a new loss is told from a known one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmalab.addr import PAGE_MASK
from vmalab.flags import (
    VM_ACCOUNT,
    VM_LOCKED,
    VM_MAYSHARE,
    VM_SHARED,
    VM_SPECIAL,
    VM_UFFD,
    permissions,
    vm_flags_text,
)
from vmalab.vma.account import DATA_VM, EXEC_VM, STACK_VM, counter_of
from vmalab.vma.area import AnonVma, File, Policy, Vma

if TYPE_CHECKING:
    from vmalab.vma.space import Commit, Mm


def violations(mm: Mm) -> list[str]:
    """All that is wrong with one address space, a sentence each; empty if nothing is."""
    found: list[str] = []
    try:
        mm.tree.validate()
    except AssertionError as error:
        found.append(str(error))
    last = 0
    chains: dict[int, tuple[AnonVma, ...]] = {}
    for start, end, vma in mm.tree.ranges():
        if vma.freed:
            found.append(f"{start:#x}-{end:#x}: in the tree, but freed by {vma.freed}")
            continue
        if (vma.start, vma.end) != (start, end):
            found.append(f"{start:#x}-{end:#x} in the tree is {vma!r}")
        if start < last or start >= end or (start | end) & PAGE_MASK:
            found.append(f"{vma!r}: out of order, empty, or no whole pages")
        last = end
        if vma.anon_vma is not None:
            chain = chains.setdefault(id(vma.anon_vma), vma.chain)
            if {id(link) for link in chain} != {id(link) for link in vma.chain}:
                found.append(f"{vma!r}: another VMA has the same anon_vma, and another chain")
        found += [f"{vma!r}: {fault}" for fault in _vma_faults(mm, vma)]
    if not mm.doomed:
        found += _counter_faults(mm)
    return found


def _vma_faults(mm: Mm, vma: Vma) -> list[str]:
    """What is wrong with a VMA by itself."""
    found: list[str] = []
    if vma.mm is not mm:
        found.append("belongs to another address space")
    if (vma.anon_vma is None) != (not vma.chain):
        found.append("an anon_vma without a chain, or a chain without an anon_vma")
    anon_vma = vma.anon_vma
    if anon_vma is not None:
        if not vma.has_in_chain(anon_vma):
            found.append("its anon_vma is not in its chain")
        if any(link.root is not anon_vma.root for link in vma.chain):
            found.append("its chain has several roots")
        if any(one is two for i, one in enumerate(vma.chain) for two in vma.chain[:i]):
            found.append("its chain holds an anon_vma twice")
    if vma.flags & VM_SHARED and not vma.flags & VM_MAYSHARE:
        found.append("shared, but may not be")
    if (vma.uffd is not None) != (vma.flags & VM_UFFD != 0):
        found.append("userfaultfd flags without a userfaultfd, or the reverse")
    if vma.flags & VM_LOCKED and vma.flags & VM_SPECIAL:
        found.append("locked, though it is special")
    if vma.pgoff < 0:
        found.append(f"page offset {vma.pgoff}")
    return found


def _counter_faults(mm: Mm) -> list[str]:
    """Which counters of an address space a recount does not bear out."""
    kinds = [0, 0, 0, 0]
    locked = 0
    vmas = mm.vmas()
    for vma in vmas:
        kinds[counter_of(vma.flags)] += vma.pages()
        if vma.flags & VM_LOCKED:
            locked += vma.pages()
    counters: list[tuple[str, int, int]] = [
        ("total_vm", mm.total_vm, sum(kinds)),
        ("exec_vm", mm.exec_vm, kinds[EXEC_VM]),
        ("stack_vm", mm.stack_vm, kinds[STACK_VM]),
        ("data_vm", mm.data_vm, kinds[DATA_VM]),
        ("locked_vm, less what was lost,", mm.locked_vm - mm.lost_locked, locked),
    ]
    found = [
        f"{name} is {counted} pages, a recount gives {pages}" for name, counted, pages in counters if counted != pages
    ]
    if mm.map_count != len(vmas):
        found.append(f"map_count is {mm.map_count}, there are {len(vmas)} VMAs")
    return found


def violations_of_all(commit: Commit, mms: list[Mm]) -> list[str]:
    """What is wrong with all the address spaces of a machine: each by itself, and what they share.

    The reference counts of anon_vmas, files and policies, and the committed memory, can only be counted over all.
    """
    found: list[str] = []
    vmas: list[Vma] = []
    for mm in mms:
        found += violations(mm)
        vmas += [vma for vma in mm.vmas() if not vma.freed]
    found += _anon_vma_faults(vmas)
    files: dict[int, tuple[File, int]] = {}
    writers: dict[int, int] = {}
    policies: dict[int, tuple[Policy, int]] = {}
    committed = 0
    for vma in vmas:
        if vma.file is not None:
            files[id(vma.file)] = (vma.file, files.get(id(vma.file), (vma.file, 0))[1] + 1)
            writers[id(vma.file)] = writers.get(id(vma.file), 0) + vma.is_shared_writer()
        if vma.policy is not None:
            policies[id(vma.policy)] = (vma.policy, policies.get(id(vma.policy), (vma.policy, 0))[1] + 1)
        if vma.flags & VM_ACCOUNT:
            committed += vma.pages()
    for file, count in files.values():
        if file.refs != count:
            found.append(f"file {file.path!r} has {file.refs} references, {count} VMAs hold it")
        if file.writers != writers[id(file)]:
            found.append(f"file {file.path!r} has {file.writers} writers, not {writers[id(file)]}")
    for policy, count in policies.values():
        if policy.refs != count:
            found.append(f"a policy of mode {policy.mode} has {policy.refs} references, {count} VMAs hold it")
    for file, _ in files.values():
        committed += file.charged
        segment = file.segment
        if segment is None:
            continue
        attached = sum([count for other, count in files.values() if other.segment is segment])
        if segment.attached != attached:
            found.append(f"segment {segment.id} counts {segment.attached} attachments, {attached} VMAs have it")
    if commit.committed - commit.lost - commit.shm != committed:
        found.append(
            f"{commit.committed} pages are committed, {commit.lost} of them lost and {commit.shm} of segments; "
            f"the VMAs account for {committed}"
        )
    return found


def _anon_vma_faults(vmas: list[Vma]) -> list[str]:
    """Whose counts of users and children are wrong."""
    known: dict[int, AnonVma] = {}
    links: dict[int, int] = {}
    active: dict[int, int] = {}
    children: dict[int, int] = {}
    for vma in vmas:
        for anon_vma in vma.chain:
            links[id(anon_vma)] = links.get(id(anon_vma), 0) + 1
            at: AnonVma = anon_vma
            while id(at) not in known:
                known[id(at)] = at
                at = at.parent
        if vma.anon_vma is not None:
            active[id(vma.anon_vma)] = active.get(id(vma.anon_vma), 0) + 1
    for key, anon_vma in known.items():
        if key in links:
            parent = id(anon_vma.parent)
            children[parent] = children.get(parent, 0) + 1
    found: list[str] = []
    for key, anon_vma in known.items():
        counted = (anon_vma.links, anon_vma.active, anon_vma.children)
        recount = (links.get(key, 0), active.get(key, 0), children.get(key, 0))
        if counted != recount:
            found.append(f"an anon_vma counts {counted} (links, active, children), a recount gives {recount}")
    return found


def dump(mm: Mm) -> str:
    """The whole state of an address space as text; anon_vmas are named a0, a1, ... in the order they are met."""
    names: dict[int, str] = {}
    lines = [
        f"{mm.map_count} VMAs; pages: total {mm.total_vm}, data {mm.data_vm}, exec {mm.exec_vm}, stack {mm.stack_vm}, "
        f"locked {mm.locked_vm} ({mm.lost_locked} lost), committed {mm.commit.committed} ({mm.commit.lost} lost, "
        f"over all processes)"
    ]
    for start, end, vma in mm.tree.ranges():
        if vma.freed:
            lines.append(f"  {start:x}-{end:x} freed by {vma.freed}")
            continue
        parts = [f"{start:x}-{end:x}", permissions(vma.flags), f"pgoff {vma.pgoff:x}", vm_flags_text(vma.flags)]
        if vma.chain:
            parts.append("anon_vma " + ",".join([names.setdefault(id(link), f"a{len(names)}") for link in vma.chain]))
        if vma.policy is not None:
            parts.append(f"policy {vma.policy.mode}:{','.join([str(node) for node in vma.policy.nodes])}")
        if vma.uffd is not None:
            parts.append(f"userfaultfd {vma.uffd.name}")
        if vma.ops is not None:
            parts.append(f"driver {vma.ops.name}")
        if vma.shown_name():
            parts.append(repr(vma.shown_name()))
        lines.append("  " + "  ".join(parts))
    return "\n".join(lines)
