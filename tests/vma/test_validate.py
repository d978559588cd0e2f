"""validate() sees each thing that can be wrong, and the dump shows the whole state."""

from collections.abc import Callable

import pytest

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE
from vmalab.machine import MACHINES, Machine, Process
from vmalab.testing.scene import Scene
from vmalab.testing.suite import find_scenes, run_scene
from vmalab.vma.area import AnonVma, File, Policy, Userfaultfd, Vma
from vmalab.vma.keys import COMPILED
from vmalab.vma.space import OVERCOMMIT_ALWAYS, OVERCOMMIT_NEVER, Commit, Settings
from vmalab.vma.validate import dump, violations, violations_of_all

AT = 0x10000000
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED


def two() -> tuple[Process, Vma, Vma]:
    """A process with a written VMA, locked, and one of a file."""
    process = Machine().process()
    process.mmap(AT, 2 * PAGE_SIZE, flags=FIXED)
    process.mlock(AT, PAGE_SIZE)
    process.munlock(AT, PAGE_SIZE)
    process.mmap(AT + 8 * PAGE_SIZE, 2 * PAGE_SIZE, f.PROT_READ, f.MAP_PRIVATE | f.MAP_FIXED, File("f"))
    below, above = process.vmas()
    assert not violations(process.mm)
    # What is broken here on purpose is no leak.
    MACHINES.clear()
    return process, below, above


def spoil(name: str, value: object) -> Callable[[Process, Vma, Vma], None]:
    """Sets an attribute of the lower VMA."""
    return lambda process, below, above: setattr(below, name, value)


def count(name: str) -> Callable[[Process, Vma, Vma], None]:
    """Makes a counter of the address space one too many."""
    return lambda process, below, above: setattr(process.mm, name, getattr(process.mm, name) + 1)


def other_root(process: Process, below: Vma, above: Vma) -> None:
    """Puts an anon_vma of another family into a chain, twice."""
    stranger = AnonVma(None)
    below.chain += (stranger, stranger)


def other_chain(process: Process, below: Vma, above: Vma) -> None:
    """Gives the upper VMA the lower one's anon_vma, and a chain that goes on below it."""
    assert below.anon_vma is not None
    above.anon_vma = below.anon_vma
    above.chain = (AnonVma(below.anon_vma), below.anon_vma)


def out_of_order(process: Process, below: Vma, above: Vma) -> None:
    """Turns a range of the tree around."""
    process.mm.tree.set_range(below.start, below.start, below.start + 100)
    below.end = below.start + 100


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (spoil("end", AT + PAGE_SIZE), "in the tree is"),
        (out_of_order, "no whole pages"),
        (spoil("freed", "a test"), "in the tree, but freed by a test"),
        (spoil("chain", ()), "an anon_vma without a chain"),
        (spoil("anon_vma", AnonVma(None)), "its anon_vma is not in its chain"),
        (other_root, "its chain has several roots"),
        (other_root, "its chain holds an anon_vma twice"),
        (other_chain, "another VMA has the same anon_vma, and another chain"),
        (spoil("flags", f.VM_SHARED), "shared, but may not be"),
        (spoil("uffd", Userfaultfd("u")), "userfaultfd flags without a userfaultfd, or the reverse"),
        (spoil("flags", f.VM_LOCKED | f.VM_IO), "locked, though it is special"),
        (spoil("pgoff", -1), "page offset -1"),
        (spoil("mm", Machine().process().mm), "belongs to another address space"),
        (count("map_count"), "map_count is 3, there are 2 VMAs"),
        (count("total_vm"), "total_vm is 5 pages, a recount gives 4"),
        (count("data_vm"), "data_vm is 3 pages, a recount gives 2"),
        (count("exec_vm"), "exec_vm is 1 pages, a recount gives 0"),
        (count("stack_vm"), "stack_vm is 1 pages, a recount gives 0"),
        (count("locked_vm"), "locked_vm, less what was lost, is 1 pages, a recount gives 0"),
    ],
)
def test_one_address_space(damage: Callable[[Process, Vma, Vma], None], said: str) -> None:
    process, below, above = two()
    damage(process, below, above)
    with pytest.raises(AssertionError) as failure:
        process.mm.validate()
    assert said in str(failure.value)
    assert "VMAs; pages: total" in str(failure.value), "the whole state is shown"


def test_a_broken_tree() -> None:
    process, _, _ = two()
    process.mm.tree.count += 1
    assert any("range tree" in fault for fault in violations(process.mm))


def test_a_doomed_address_space_may_miscount() -> None:
    process, _, _ = two()
    process.mm.total_vm += 1
    process.mm.doomed = True
    assert not violations(process.mm)


def test_what_all_share() -> None:
    process, below, above = two()
    file, anon_vma = above.file, below.anon_vma
    assert file is not None
    assert anon_vma is not None
    policy = Policy(2, 0, (0,))
    below.policy = policy
    file.refs += 1
    file.writers += 1
    anon_vma.links += 1
    machine = process.machine
    machine.commit.committed += 1
    found = "\n".join(violations_of_all(machine.commit, [process.mm]))
    for said in (
        "file 'f' has 2 references, 1 VMAs hold it",
        "file 'f' has 1 writers, not 0",
        "a policy of mode 2 has 0 references, 1 VMAs hold it",
        "an anon_vma counts (2, 1, 1) (links, active, children), a recount gives (1, 1, 1)",
        "3 pages are committed, 0 of them lost and 0 of segments; the VMAs account for 2",
    ):
        assert said in found
    with pytest.raises(AssertionError, match="the machine is broken"):
        machine.validate()


def test_an_ancestor_that_nobody_is_linked_to() -> None:
    process, below, _ = two()
    below.chain = (AnonVma(AnonVma(None)),)
    below.anon_vma = below.chain[0]
    found = "\n".join(violations_of_all(process.machine.commit, [process.mm]))
    assert "counts (0, 0, 1) (links, active, children), a recount gives (0, 0, 1)" not in found
    assert "counts (0, 0, 0) (links, active, children), a recount gives (1, 1, 0)" in found


def test_the_dump_names_everything() -> None:
    process, below, above = two()
    below.policy = Policy(2, 0, (0, 1))
    below.uffd = Userfaultfd("u")
    below.name = "heap of mine"
    text = dump(process.mm)
    for said in ("anon_vma a0", "policy 2:0,1", "userfaultfd u", "'[anon:heap of mine]'", "driver file", "'f'"):
        assert said in text
    above.freed = "a test"
    assert "freed by a test" in dump(process.mm)
    below.name = None
    below.label = "[vdso]"
    assert "'[vdso]'" in dump(process.mm)
    assert repr(below) == f"<Vma {AT:x}-{AT + 2 * PAGE_SIZE:x} rw-p [vdso]>"
    assert repr(above) == "<Vma freed by a test>"


def freed() -> Vma:
    """A VMA that munmap has freed."""
    settings = Settings()
    settings.sanitise = True
    process = Machine(settings=settings).process()
    process.mmap(AT, PAGE_SIZE, flags=FIXED)
    (vma,) = process.vmas()
    process.munmap(AT, PAGE_SIZE)
    return vma


@pytest.mark.skipif(COMPILED, reason="native attributes cannot be guarded: a freed VMA holds garbage")
def test_touching_a_freed_vma_raises() -> None:
    vma = freed()
    with pytest.raises(AssertionError, match="use after free: start of a VMA that munmap freed"):
        print(vma.start)
    with pytest.raises(AssertionError, match="use after free: flags of a VMA that munmap freed"):
        vma.flags = 0
    assert repr(vma) == "<Vma freed by munmap>"
    assert type(vma).__name__ == vma.__class__.__name__ == "FreedVma"


@pytest.mark.skipif(not COMPILED, reason="only native attributes hold garbage")
def test_a_freed_vma_holds_garbage() -> None:
    vma = freed()
    assert vma.start == vma.end == vma.pgoff == vma.flags == 0x6B6B6B6B6B6B6B6B
    assert vma.freed == "munmap"
    assert (vma.file, vma.policy, vma.uffd, vma.anon_vma) == (None, None, None, None)


def test_locks_are_asserted() -> None:
    process, below, _ = two()
    mm = process.mm
    mm.settings.sanitise = True
    with pytest.raises(AssertionError, match="not held for writing"):
        mm.set_range(below, below.start, below.end, below.pgoff)
    with pytest.raises(AssertionError, match="is not held"):
        mm.assert_locked()
    mm.mmap_read_lock()
    mm.assert_locked()
    for take in (mm.mmap_read_lock, mm.mmap_write_lock):
        with pytest.raises(AssertionError, match="held already"):
            take()
    with pytest.raises(AssertionError, match="not held for writing"):
        mm.mmap_write_unlock()
    mm.mmap_read_unlock()
    with pytest.raises(AssertionError, match="not held for reading"):
        mm.mmap_read_unlock()


@pytest.mark.parametrize("scene", find_scenes()[::7], ids=lambda scene: scene.name)
def test_scenes_without_sanitisers(scene: Scene) -> None:
    assert not run_scene(scene, sanitise=False).problems


def test_overcommit() -> None:
    commit = Commit(ram=100, swap=10)
    assert commit.charge(111, 0, False)
    assert not commit.charge(110, 0, False)
    commit.mode = OVERCOMMIT_ALWAYS
    assert not commit.charge(1000, 0, False)
    commit.committed = 0
    commit.mode = OVERCOMMIT_NEVER
    commit.admin_reserve, commit.user_reserve = 8, 16
    assert commit.limit() == 60
    assert commit.charge(52, 0, False), "the reserve for administrators"
    assert not commit.charge(52, 0, True)
    commit.committed = 0
    assert commit.charge(49, 32 * 3, False), "and three pages for a process of 96"
    assert not commit.charge(48, 32 * 3, False)
    commit.kbytes = 400
    assert commit.limit() == 110
