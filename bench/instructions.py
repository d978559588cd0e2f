"""What each workload costs in machine instructions, beside another commit: python -m bench.instructions [COMMIT]

Instructions are counted by callgrind, and do not depend on what else the machine does: a change of a few per cent can
be told.  The other commit (the one before this, unless named) is built once below build/instructions, in some minutes;
its counts are kept there.  Needs valgrind, and the compiled core.  Exits with 1 where a workload costs 3 % more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from vmalab.bench.script import Scribe, Script
from vmalab.bench.workloads import PAGED, WORKLOADS
from vmalab.errors import VmalabError
from vmalab.trace.records import Exec, Machine

ROOT: Final = Path(__file__).resolve().parent.parent
KEPT: Final = ROOT / "build/instructions"
COUNTED: Final = ("pairs", "mix-10", "mix-1k", "mix-60k", "protect", "glibc-like", "jit-like", "faults")
LOOP: Final = "CPyDef_drive___drive"
"""What is counted: the loop over prepared calls, and all that it calls."""
MORE: Final = 1.03


def count(name: str, sources: Path) -> float:
    """Instructions for each step of a workload, by the core that lies below sources.  Raises VmalabError."""
    if shutil.which("valgrind") is None:
        raise VmalabError("instructions are counted by valgrind: install it")
    start = Exec(1, 1, "", [], mmap_base=0x7FFFF7FFF000, start_brk=0x404000, brk=0x404000)
    script = Script(name, Machine(), start, pages=name in PAGED)
    WORKLOADS[name](Scribe(script, 1), 1)
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / "script"
    path.write_bytes(msgspec.msgpack.encode(script))
    tool = ["valgrind", "--tool=callgrind", f"--toggle-collect={LOOP}", "--callgrind-out-file=/dev/null"]
    worker = [sys.executable, "-m", "vmalab.bench.worker", "model", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(sources), "PYTHONHASHSEED": "0", "VMALAB_PURE": "0"}
    environment["VMALAB_SANITISE"] = "0"
    # Once with the round and once without: what comes before it does not count.
    counts: list[int] = []
    for rounds in ("", "0\n"):
        done = subprocess.run(
            [*tool, *worker], input=rounds, capture_output=True, text=True, env=environment, check=False
        )
        found = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
        if done.returncode or found is None or '"error"' in done.stdout:
            raise VmalabError(f"{name} could not be counted: {(done.stdout + done.stderr)[-500:]}")
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / script.ops


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def built(commit: str) -> Path:
    """The sources of a commit with the core compiled; builds it the first time."""
    folder = KEPT / commit
    if not (folder / "built").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        folder.mkdir()
        subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
        print(f"building {commit[:12]}, which takes some minutes", file=sys.stderr, flush=True)
        environment = {**os.environ, "VMALAB_BUILD": "compiled"}
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        (folder / "built").touch()
    return folder / "src"


def counts_of(commit: str) -> dict[str, float]:
    """The counts of a commit, kept from the last time if they are there."""
    kept = KEPT / f"{commit}.json"
    if kept.exists():
        found: dict[str, float] = json.loads(kept.read_text("ascii"))
        return found
    sources = built(commit)
    counts = {name: count(name, sources) for name in COUNTED}
    kept.write_text(json.dumps(counts), "ascii")
    return counts


def main(arguments: list[str]) -> int:
    """Count, compare and print; 1 if a workload costs more than before."""
    commit = _git("rev-parse", f"{arguments[0] if arguments else 'HEAD~1'}^{{commit}}")
    status = 0
    before = counts_of(commit)
    print(f"instructions a step   {commit[:12]}   these sources")
    for name in COUNTED:
        now = count(name, ROOT / "src")
        ratio = now / before[name]
        status |= ratio > MORE
        print(
            f"{name:<18} {before[name]:>15,.0f} {now:>15,.0f}   {ratio:.3f}{'  more' if ratio > MORE else ''}",
            flush=True,
        )
    return int(status)


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except VmalabError as error:
        print(f"bench.instructions: {error}", file=sys.stderr)
        raise SystemExit(2) from None
