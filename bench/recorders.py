"""What recording costs, and whether the recordings replay exactly: python -m bench.recorders [--check] [NAME...]

In each round a program runs alone, under the ptrace recorder and under the BPF recorder, without stacks and with them,
one after the other; its own time is taken, without the start of the recorder.  The table has the median of the rounds'
ratios.  The trace that BPF makes without stacks is replayed: all results and the final VMAs, with their anon_vmas, have
to be as recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
_THREADS = """
import asyncio, json, sqlite3, ssl, threading
threads = [threading.Thread(target=lambda: [bytearray(1 << 20) for _ in range(50)]) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
_SQL = """create table t(a, b);
with recursive c(x) as (select 1 union all select x + 1 from c where x < 100000) insert into t select x, hex(x) from c;
create index i on t(b); select count(*) from t;"""
_NODE = "let a = []; for (let i = 0; i < 1e6; i++) a.push({i});"
_TIMED = 'TIMEFORMAT=%R; exec 3>"$1"; shift; { time "$@" >/dev/null 2>&1; } 2>&3'
RECORDERS = {
    "ptrace": ["--with", "ptrace"],
    "BPF": ["--with", "bpf"],
    "--stacks": ["--with", "bpf", "--stacks"],
    "--dwarf-stacks": ["--with", "bpf", "--dwarf-stacks"],
}
"""How they are asked for, by their column."""


def programs(work: Path) -> dict[str, list[str]]:
    """The programs that this machine has, by name, as commands."""
    (work / "hello.c").write_text("int main(void) { return 0; }\n")
    stress = work / "vma_stress"
    compile_threads = ["javac", "-d", str(work), str(PROGRAMS / "Threads.java")]
    found = {
        "python, imports and threads": [os.path.realpath(sys.executable), "-c", _THREADS],
        "gcc": ["gcc", "-o", str(work / "hello"), str(work / "hello.c")],
        "git log": ["git", "-C", str(PROGRAMS), "log", "--stat", "-5"],
        "node": ["node", "-e", _NODE],
        "java, 28 threads": ["java", "-cp", str(work), "Threads"],
        "sqlite": ["sqlite3", ":memory:", _SQL],
        "PostgreSQL, pgbench": ["bash", str(PROGRAMS / "postgres.sh")],
        "redis, background save": ["bash", str(PROGRAMS / "redis.sh")],
        "stress-ng --vm": ["stress-ng", "--vm", "1", "--vm-bytes", "32M", "--vm-ops", "2000"],
        "stress-ng --mmap": ["stress-ng", "--mmap", "1", "--mmap-bytes", "4M", "--mmap-ops", "4"],
        "stress-ng --vma": ["stress-ng", "--vma", "1", "--vma-ops", "2000"],
        "as stress-ng --vma": [str(stress), "5000"],
    }
    subprocess.run(["cc", "-O2", "-pthread", "-o", str(stress), str(PROGRAMS / "vma_stress.c")], check=True)
    needs = {"PostgreSQL, pgbench": "pgbench", "redis, background save": "redis-server", "java, 28 threads": "javac"}
    missing = [name for name, command in found.items() if not shutil.which(needs.get(name, command[0]))]
    for name in missing:
        print(f"left out: {name}: {needs.get(name, found[name][0])} is not installed")
        del found[name]
    vma = found.get("stress-ng --vma")
    if vma is not None and subprocess.run([*vma, "--dry-run"], check=False, capture_output=True).returncode:
        print("left out: stress-ng --vma: this stress-ng does not have it, as that of Debian 12 does not")
        del found["stress-ng --vma"]
    if "java, 28 threads" in found:
        subprocess.run(compile_threads, check=True)
    return found


def seconds(recorder: str, command: list[str], work: Path) -> float:
    """How long the program ran by its own clock, alone (recorder "") or recorded by one of RECORDERS."""
    note = work / "time"
    timed = ["bash", "-c", _TIMED, "timed", str(note), *command]
    if recorder:
        record = [sys.executable, "-m", "vmalab", "record", "-q", *RECORDERS[recorder]]
        record += ["-o", str(work / f"{recorder}.zst")]
        timed = [*record, "--", *timed]
    subprocess.run(timed, check=True, stdout=subprocess.DEVNULL)
    return float(note.read_text().split()[-1])


def replay(trace: Path) -> tuple[bool, dict[str, int]]:
    """Whether a trace replays exactly, and what it holds."""
    done = subprocess.run(
        [sys.executable, "-m", "vmalab", "replay", "--json", str(trace)], capture_output=True, check=False
    )
    shown = json.loads(done.stdout)
    found = shown["programs"]
    counts = {
        "calls": sum(program["calls"] for program in found),
        "lists": sum(program["final"] is not None for program in found),
        "unknown": sum(program["unknown"] for program in found),
        "lost": sum(program["lost"] is not None for program in found),
        "differences": sum(program["mismatches"] + len(program["final"] or []) for program in found),
    }
    return bool(shown["equal"]), counts


def measure(name: str, command: list[str], rounds: int, work: Path, *, check: bool) -> bool:
    """Measure and check one program, and print its row; whether all its recordings replay exactly."""
    ratios: dict[str, list[float]] = {recorder: [] for recorder in RECORDERS}
    equal = 0
    alone: list[float] = []
    notes: dict[str, int] = {}
    for number in range(rounds):
        if check:
            seconds("BPF", command, work)
        else:
            own = seconds("", command, work)
            alone.append(own)
            for recorder, found in ratios.items():
                found.append(seconds(recorder, command, work) / own)
        same, counts = replay(work / "BPF.zst")
        equal += same
        notes = {key: max(notes.get(key, 0), value) for key, value in counts.items()}
        if not same or counts["lost"]:
            kept = Path(tempfile.gettempdir()) / f"vmalab-{name.split()[0].strip(',')}-{number}.jsonl.zst"
            shutil.copy(work / "BPF.zst", kept)
            print(f"  {name}: round {number + 1}: {counts}; the trace is {kept}", flush=True)
    if check:
        print(f"{name}: {equal} of {rounds} replay exactly, {notes}", flush=True)
        return equal == rounds
    columns = [f"{statistics.median(found):.2f}" for found in ratios.values()]
    print(
        f"| {name} | {statistics.median(alone) * 1000:.0f} | {notes['calls']:,} | {' | '.join(columns)} | "
        f"{equal} of {rounds} | {notes['lists']} | {notes['unknown']} |",
        flush=True,
    )
    return equal == rounds


def main() -> int:
    """Measure what is asked for; 1 if a recording does not replay exactly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("names", nargs="*", help="parts of names of programs; all without")
    parser.add_argument("--check", action="store_true", help="no times: only whether the BPF recordings replay exactly")
    asked = parser.parse_args()
    status = 0
    if not asked.check:
        columns = ["program", "alone, ms", "calls", *RECORDERS, "replays exactly", "lists of VMAs", "unknown"]
        print(f"| {' | '.join(columns)} |", flush=True)
        print(f"|---|---:|---:|{'---:|' * len(RECORDERS)}---|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        work.chmod(0o755)
        for name, command in programs(work).items():
            if not asked.names or any(part in name for part in asked.names):
                status |= not measure(name, command, asked.rounds, work, check=asked.check)
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
