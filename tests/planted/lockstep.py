"""Plant a bug and look for it in lockstep with this kernel: `python -m tests.planted.lockstep [NAME...]`, interpreted.

Prints after how many steps each is found, and the shortest sequence that shows it.  Exits with 1 if one is not found
within 200,000 steps, or not shown by 6 calls.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.planted.bugs import BUGS, Bug
from tests.planted.calls import CALL_BUGS
from tests.planted.plant import plant

ROOT = Path(__file__).parents[2]
MOST_STEPS = 200_000
MOST_CALLS = 6
NOT_VISIBLE = {
    "merge_keeps_duplicated_anon_vma": "shows when an allocation fails, and none fails here",
    "modify_undoes_first_split": "shows when the second split fails: out of memory, or at the map-count limit",
    "copy_error_leaves_anon_vma": "shows when an allocation fails, and none fails here",
    "relocate_over_neighbour": "execve moves a stack, and the model takes that from the recorded VMAs",
    "unmap_head_split_above": "which of two halves is the new VMA cannot be seen from outside",
    "mmap_error_leaves_file": "the file that is left behind is one that no VMA holds",
    "fork_links_early": "the order within a fork cannot be seen from outside",
    "unmap_one_too_many": "shows at the map-count limit alone: tests/witness is there",
    "brk_merges_above": "brk keeps a page free above the heap, so nothing ever touches it there",
}
"""Bugs that the calls of a program on a healthy machine cannot show, and why; scenes find them."""


def find(bug: Bug) -> tuple[int, str, list[str]]:
    """How many steps it took, what differs (empty: nothing), and the shortest sequence."""
    plant(bug)
    from vmalab.fuzz.campaign import Campaign, run

    campaign = Campaign(0)
    text = ""
    shortest: list[str] = []
    while campaign.steps < MOST_STEPS:
        run(campaign, MOST_STEPS, lambda steps: None)
        if campaign.divergence is None:
            break
        if not text or len(campaign.ops) < len(shortest):
            text, shortest = str(campaign.divergence).splitlines()[0], [str(op) for op in campaign.ops]
        if len(shortest) <= MOST_CALLS:
            break
        # What one run stumbles over in a roundabout way, another may show plainly.
        campaign.seed, campaign.divergence, campaign.ops = campaign.seed + 1, None, []
    return campaign.steps, text, shortest


def main(names: list[str]) -> int:
    """Look for each bug in a process of its own."""
    failures = 0
    for bug in (*BUGS, *CALL_BUGS):
        if names and bug.name not in names:
            continue
        if bug.name in NOT_VISIBLE:
            print(f"{bug.name}: not looked for: {NOT_VISIBLE[bug.name]}", flush=True)
            continue
        environment = {**os.environ, "VMALAB_PURE": "1", "VMALAB_SANITISE": "1"}
        command = [sys.executable, "-m", "tests.planted.lockstep", "--one", bug.name]
        done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
        print(f"{bug.name}: {done.stdout.strip() or done.stderr.strip()}", flush=True)
        failures += done.returncode != 0
    return 1 if failures else 0


def one(name: str) -> int:
    """Look for one bug, in this process."""
    (bug,) = [bug for bug in (*BUGS, *CALL_BUGS) if bug.name == name]
    steps, text, ops = find(bug)
    if not text:
        print(f"NOT FOUND in {steps:,} steps")
        return 1
    print(f"{steps:,} steps, {len(ops)} calls: {text}")
    print("\n".join([f"    {op}" for op in ops]))
    return 0 if len(ops) <= MOST_CALLS else 1


if __name__ == "__main__":
    sys.exit(one(sys.argv[2]) if sys.argv[1:2] == ["--one"] else main(sys.argv[1:]))
