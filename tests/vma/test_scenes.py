"""Every packaged scene is a test; so is each of its allocations, failed in turn."""

import pytest

from vmalab.testing.scene import Scene
from vmalab.testing.suite import find_scenes, run_scene

SCENES = find_scenes()


@pytest.mark.parametrize("scene", SCENES, ids=[scene.name for scene in SCENES])
def test_scene(scene: Scene) -> None:
    result = run_scene(scene)
    assert not result.problems, "\n".join([f"{scene.path}, line {scene.line}", *result.problems])


def test_titles_tell_scenes_apart() -> None:
    names = [scene.name for scene in SCENES]
    assert len(set(names)) == len(names)


def test_every_operation_fails_at_every_site() -> None:
    pairs = {pair for scene in SCENES for pair in run_scene(scene).pairs}
    expected = {
        "vma_merge_new_range": {"tree", "anon_vma"},
        "vma_merge_existing_range": {"tree", "anon_vma"},
        "vma_merge_copied_range": {"tree", "anon_vma"},
        "vma_merge_extend": {"tree", "anon_vma"},
        "vma_expand": {"tree", "anon_vma"},
        "vma_shrink": {"tree"},
        "vma_modify_flags": {"vma", "tree", "anon_vma"},
        "vma_modify_flags_name": {"vma", "tree"},
        "vma_modify_policy": {"vma", "tree", "policy"},
        "vma_modify_uffd": {"vma", "tree"},
        "split_vma": {"vma", "tree", "policy", "anon_vma"},
        "split_vma_unchecked": {"vma", "tree"},
        "munmap_range": {"vma", "tree", "policy", "anon_vma", "detach"},
        "do_munmap": {"vma", "tree", "detach"},
        "mmap_region": {"vma", "tree", "detach"},
        "do_brk_flags": {"vma", "tree"},
        "insert_vm_struct": {"tree"},
        "copy_vma": {"vma", "tree", "policy", "anon_vma"},
        "relocate_vma_down": {"tree", "page table"},
        "expand_stack": {"tree", "anon_vma"},
        "anon_vma_prepare": {"anon_vma"},
        "dup_mmap": {"vma", "policy", "anon_vma"},
    }
    assert {(operation, site) for operation, sites in expected.items() for site in sites} <= pairs
