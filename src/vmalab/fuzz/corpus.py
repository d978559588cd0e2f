"""What campaigns have done, in an SQLite file: runs, what they reached, divergences."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmalab.errors import VmalabError
from vmalab.fuzz.features import by_feature, by_outcome

if TYPE_CHECKING:
    from vmalab.fuzz.campaign import Run

_TABLES: Final = """\
CREATE TABLE IF NOT EXISTS runs (
    seed INTEGER PRIMARY KEY, steps INTEGER NOT NULL, kernel TEXT NOT NULL, reader TEXT NOT NULL, new INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes (call TEXT NOT NULL, reason TEXT NOT NULL, seed INTEGER NOT NULL,
    steps INTEGER NOT NULL, PRIMARY KEY (call, reason));
CREATE TABLE IF NOT EXISTS features (name TEXT PRIMARY KEY, steps INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS divergences (
    seed INTEGER PRIMARY KEY, text TEXT NOT NULL, sequence TEXT NOT NULL, shortest TEXT NOT NULL);
"""


class Corpus:
    """An SQLite file of runs.  A context manager; every run is written at once, so nothing is lost by Ctrl-C.

    Tables: runs (by seed; new is how many outcomes it was the first to reach: those seeds are the corpus), outcomes
    (which answer of which call, and the first seed that got it), features (steps by call and flag), divergences
    (sequences as JSON).
    """

    def __init__(self, path: str | Path) -> None:
        """Open or make the file.  Raises VmalabError if it is something else."""
        with ExitStack() as stack:
            try:
                self._database = stack.enter_context(closing(sqlite3.connect(path)))
                self._database.executescript(_TABLES)
            except sqlite3.Error as error:
                raise VmalabError(f"{path}: {error}") from None
            stack.pop_all()

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *what: object) -> None:
        self._database.close()

    def next_seed(self, first: int) -> int:
        """The seed from first on that no run has had."""
        row = self._database.execute("SELECT max(seed) FROM runs WHERE seed >= ?", (first,)).fetchone()
        return first if row[0] is None else int(row[0]) + 1

    def seeds(self) -> list[int]:
        """The seeds whose runs reached something new: the corpus."""
        return [int(row[0]) for row in self._database.execute("SELECT seed FROM runs WHERE new > 0 ORDER BY seed")]

    def add(self, run: Run) -> int:
        """Write a run; how many outcomes it is the first to reach."""
        with self._database:
            new = 0
            for (call, reason), steps in sorted(by_outcome(run.counts).items()):
                new += self._database.execute(
                    "INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, 0)", (call, reason, run.seed)
                ).rowcount
                self._database.execute(
                    "UPDATE outcomes SET steps = steps + ? WHERE call = ? AND reason = ?", (steps, call, reason)
                )
            for name, steps in by_feature(run.counts).items():
                self._database.execute(
                    "INSERT INTO features VALUES (?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET steps = steps + excluded.steps",
                    (name, steps),
                )
            row = (run.seed, run.steps, run.kernel, run.reader, new)
            self._database.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)", row)
        return new

    def add_divergence(self, seed: int, text: str, sequence: list[str], shortest: list[str]) -> None:
        """Write what diverged."""
        row = (seed, text, json.dumps(sequence), json.dumps(shortest))
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO divergences VALUES (?, ?, ?, ?)", row)

    def features(self) -> Counter[str]:
        """Steps by call and flag, over all runs."""
        return Counter(dict(self._database.execute("SELECT name, steps FROM features").fetchall()))

    def outcomes(self) -> Counter[tuple[str, str]]:
        """Steps by call and answer, over all runs."""
        rows = self._database.execute("SELECT call, reason, steps FROM outcomes").fetchall()
        return Counter({(str(call), str(reason)): int(steps) for call, reason, steps in rows})
