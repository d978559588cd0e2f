"""Campaigns: several agents at once, a corpus that is gone on with, Ctrl-C, and what a run says of itself."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.test_lockstep import live, whole
from tests.programs import vmalab
from vmalab.errors import VmalabError
from vmalab.fuzz.campaign import Campaign, Options, Run, run
from vmalab.fuzz.corpus import Corpus
from vmalab.fuzz.divergence import Divergence
from vmalab.fuzz.features import by_feature, catalogue, features
from vmalab.fuzz.ops import Op
from vmalab.reason import UNALIGNED, YES


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def test_a_corpus_keeps_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    first = Run(7, 400, "bpf", counts={("munmap", 0, 0, YES): 3})
    second = Run(8, 300, "bpf", counts={("munmap", 0, 0, YES): 1, ("munmap", 0, 0, UNALIGNED): 1})
    with Corpus(path) as corpus:
        assert corpus.next_seed(5) == 5
        assert [corpus.add(first), corpus.add(second), corpus.add(Run(9, 1, "bpf"))] == [1, 1, 0]
        corpus.add_divergence(9, "text", ["Op()"], [])
    with Corpus(path) as corpus:
        assert (corpus.next_seed(5), corpus.seeds()) == (10, [7, 8])
        assert corpus.features() == {"munmap": 5}
        assert corpus.outcomes() == {("munmap", "YES"): 4, ("munmap", "UNALIGNED"): 1}
    rows = _rows(path, "SELECT seed, text, sequence FROM divergences")
    assert rows == [(9, "text", '["Op()"]')]


def test_a_file_that_is_no_corpus(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_text("what is this? " * 100)
    with pytest.raises(VmalabError, match="file is not a database"):
        Corpus(path)
    done = vmalab("fuzz", "live", "--steps", "1", "--corpus", str(path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert vmalab("fuzz", "live", "--resume").returncode == 2


@live
def test_several_agents_do_the_same_as_one(tmp_path: Path) -> None:
    one, two = Campaign(40), Campaign(40)
    run(one, 3000, lambda steps: None)
    with Corpus(tmp_path / "runs.db") as corpus:
        run(two, 3000, lambda steps: None, Options(jobs=2), corpus)
        assert corpus.features() == by_feature(one.counts)
        assert corpus.next_seed(0) == one.seed
    assert (one.counts, one.seed, one.steps) == (two.counts, two.seed, two.steps)


@whole
def test_a_divergence_comes_back_from_a_worker(tmp_path: Path) -> None:
    campaign = Campaign(0)
    options = Options(jobs=2, behaviours={"map_stack_no_hugepage": False})
    with Corpus(tmp_path / "runs.db") as corpus:
        run(campaign, 100_000, lambda steps: None, options, corpus)
    assert campaign.divergence is not None
    assert len(campaign.ops) == 1
    assert campaign.ops[0].name == "mmap"
    (row,) = _rows(tmp_path / "runs.db", "SELECT seed, shortest FROM divergences")
    assert (row[0], json.loads(row[1])) == (campaign.seed, [repr(campaign.ops[0])])


@live
def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    command = [sys.executable, "-m", "vmalab", "fuzz", "live", "--steps", "100000000", "--corpus", str(path)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.05)
        if path.exists() and path.stat().st_size:
            with Corpus(path) as corpus:
                if corpus.next_seed(0) > 3:
                    break
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (130, "")
    with Corpus(path) as corpus:
        seed = corpus.next_seed(0)
    assert f"interrupted, go on with --seed {seed}" in out
    resumed = json.loads(vmalab("fuzz", "live", "--steps", "400", "--corpus", str(path), "--resume", "--json").stdout)
    assert resumed["next_seed"] == seed + resumed["runs"]


@live
def test_an_interrupt_divides_no_run(tmp_path: Path) -> None:
    """Ctrl-C while a run is written: it is counted and written, or neither."""

    class Interrupted(Corpus):
        def add(self, run: Run) -> int:
            signal.raise_signal(signal.SIGINT)
            return super().add(run)

    campaign = Campaign(7)
    handler = signal.getsignal(signal.SIGINT)
    with Interrupted(tmp_path / "runs.db") as corpus:
        with pytest.raises(KeyboardInterrupt):
            run(campaign, 100_000, lambda steps: None, corpus=corpus)
        assert (corpus.next_seed(0), campaign.seed, campaign.runs) == (8, 8, 1)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_steps_exercise() -> None:
    flags = ("PROT_READ", "PROT_WRITE", "MAP_FIXED", "MAP_ANONYMOUS", "MAP_PRIVATE")
    assert set(features("mmap", 3, 0x32)) == {"mmap", *[f"mmap {flag}" for flag in flags]}
    assert features("madvise", 102, 102) == ("madvise", "madvise MADV_GUARD_INSTALL")
    assert features("write", 0, 0) == ("(write access)",)
    assert "MADV_COLLAPSE" in catalogue()["process_madvise"]


def test_what_a_divergence_is_called() -> None:
    found = Divergence(3, Op("munmap", (0x1000, 1), 2), "result", "0", "1")
    assert str(found) == "step 3, munmap(0x1000, 1) by 2: result: model 0, kernel 1"
