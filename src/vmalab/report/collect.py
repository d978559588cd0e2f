"""One replay of a trace, and all that a report tells of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from vmalab.explain.attribution import Attribution, Group
from vmalab.explain.attribution import Space as Attributed
from vmalab.explain.obstacles import Sight
from vmalab.explain.story import Chronicle, Happening, put_in_order
from vmalab.report.lives import Lives
from vmalab.trace import records
from vmalab.trace.replay import Mismatch, Replay
from vmalab.trace.show import record_text, result_text
from vmalab.vma.observer import Observer

if TYPE_CHECKING:
    from vmalab.report.trace_viewer import TraceViewer
    from vmalab.semantics import Semantics
    from vmalab.trace.file import TraceReader
    from vmalab.vma.area import Vma
    from vmalab.vma.space import Mm

KINDS_TOLD: Final = ("", "arrived", "grew", "removed")
"""The kinds of a Happening, by number."""


@final
class Tale(Chronicle):
    """All that happened to memory, as columns: one row a happening, in the order in which they are to be told."""

    def __init__(self, lives: Lives) -> None:
        super().__init__()
        self.words: list[tuple[str, str]] = []
        """What is said before the bounds of a VMA, and what after."""
        self.n = array("I")
        self.space = array("I")
        self.start = array("Q")
        self.end = array("Q")
        self.about_start = array("Q")
        """The bounds of the VMA that the words are about; both 0 where they are about none."""
        self.about_end = array("Q")
        self.said = array("I")
        """The number of the words."""
        self.kind = array("B")
        self._known: dict[tuple[str, str], int] = {}
        self._now: list[tuple[Happening, int]] = []
        self._lives = lives

    def keep(self, happening: Happening) -> None:
        # The space of one that is about to go is known now, that of a new one when the record is over.
        self._now.append((happening, self._lives.number(happening.mm)))

    def settle(self) -> None:
        """The record is over, and the spaces are known."""
        if not self._now:
            return
        numbers = {id(happening): number for happening, number in self._now}
        lines: list[Happening] = []
        for happening, _ in self._now:
            put_in_order(lines, happening)
        for each in lines:
            number = numbers[id(each)]
            if number < 0:
                number = self._lives.number(each.mm)
            if number >= 0:
                self._add(each, number)
        self._now.clear()

    def _add(self, each: Happening, space: int) -> None:
        words = (each.before, each.after)
        said = self._known.setdefault(words, len(self.words))
        if said == len(self.words):
            self.words.append(words)
        self.n.append(each.n)
        self.space.append(space)
        self.start.append(each.start)
        self.end.append(each.end)
        about = each.about or (0, 0)
        self.about_start.append(about[0])
        self.about_end.append(about[1])
        self.said.append(said)
        self.kind.append(KINDS_TOLD.index(each.kind))


@final
class _All(Observer):
    """Several observers of one replay."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers

    def added(self, vma: Vma) -> None:
        for each in self._observers:
            each.added(vma)

    def removed(self, vma: Vma) -> None:
        for each in self._observers:
            each.removed(vma)

    def split(self, below: Vma, above: Vma) -> None:
        for each in self._observers:
            each.split(below, above)

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        for each in self._observers:
            each.merged(survivor, start, end)

    def flags_changed(self, vma: Vma, old: int) -> None:
        for each in self._observers:
            each.flags_changed(vma, old)

    def attribute_changed(self, vma: Vma, what: str) -> None:
        for each in self._observers:
            each.attribute_changed(vma, what)

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        for each in self._observers:
            each.resized(vma, old_start, old_end)

    def forked(self, child: Mm, parent: Mm) -> None:
        for each in self._observers:
            each.forked(child, parent)


@final
class Failed:
    """One call that the kernel refused, or that the model saw otherwise than the kernel."""

    __slots__ = ("cause", "errno", "mismatch", "n", "reason", "sentence", "space", "where")

    def __init__(self, n: int, space: int) -> None:
        self.n = n
        self.space = space
        self.errno: str = ""
        """By name; empty where the kernel did not refuse it."""
        self.reason: str = ""
        self.sentence: str = ""
        self.where: str = ""
        self.cause: str = ""
        self.mismatch: str = ""
        """What the model predicted, where that is not what the kernel answered."""


@final
class Collected:
    """What one replay of a trace has shown.  Feed it the records in order with step(), then call finish()."""

    def __init__(
        self, header: records.Header, viewer: TraceViewer | None = None, semantics: Semantics | None = None
    ) -> None:
        self.viewer: TraceViewer | None = viewer
        """Is told of each record as well, for the export."""
        sight = Sight.NO_FAULTS if header.faults == "none" else Sight.FULL
        self.attribution: Attribution = Attribution(sight)
        self.lives: Lives = Lives(self._apart)
        self.tale: Tale = Tale(self.lives)
        self.replay: Replay = Replay(header, semantics, _All([self.attribution, self.lives, self.tale]))
        self.attribution.replay = self.tale.replay = self.replay
        self.texts: list[str] = [""]
        """What each record is, by its number."""
        self.failed: list[Failed] = []
        self.shortcomings: list[str] = []
        """What the trace lacks, a sentence each without its full stop; escaped."""
        self._groups: dict[int, int] = {}

    def _apart(self, mm: Mm, start: int) -> int:
        """The number of what keeps a VMA apart from the one below, among the groups of its space."""
        space = self.attribution.space_at(mm)
        group = space.group_at(start) if space is not None else None
        if space is None or group is None:
            return 0
        found = self._groups.get(id(group))
        if found is None:
            found = list(space.groups.values()).index(group)
            self._groups[id(group)] = found
        return found

    def step(self, record: records.Record) -> None:
        """Take one record."""
        replay = self.replay
        before = replay.process(getattr(record, "pid", 0))
        space = self.lives.number(before.mm) if before is not None else -1
        self.attribution.before(record)
        mismatch = self.tale.step(record)
        self.attribution.after(record)
        self.lives.after(replay, record)
        self.tale.settle()
        if space < 0 or isinstance(record, records.Exec):
            after = replay.process(getattr(record, "pid", 0))
            space = self.lives.number(after.mm) if after is not None else space
        self.texts.append(record_text(record, replay.call))
        if self.viewer is not None:
            self.viewer.after(replay, record, mismatch)
        if isinstance(record, records.Call) and (record.failed or mismatch is not None):
            self._note_failure(record, space, mismatch)

    def _note_failure(self, record: records.Call, space: int, mismatch: Mismatch | None) -> None:
        outcome = self.replay.outcome
        if outcome is None:
            return
        failed = Failed(record.n, space)
        failed.errno = result_text(record.ret) if record.failed else ""
        if outcome.reason and outcome.result == record.ret:
            why = outcome.explanation()
            failed.reason, failed.sentence, failed.where = why.name, why.sentence, why.where
        elif not outcome.modelled:
            failed.sentence = "the call is not modelled"
        elif not outcome.known:
            failed.sentence = "the model cannot know the result"
        if mismatch is not None:
            failed.mismatch = result_text(outcome.result)
        self.failed.append(failed)

    def finish(self) -> None:
        """The trace is over."""
        self.replay.finish()
        self.attribution.finish()
        self.lives.finish(self.replay)
        causes = {failure.first: failure.cause for failure in self.attribution.failures.all()}
        for each in self.failed:
            each.cause = causes.get(each.n, "")

    def attributed(self, number: int) -> Attributed:
        """What is known of the causes of the VMAs of a space."""
        return self.attribution.spaces[number]

    def groups(self, number: int) -> list[Group]:
        """What keeps the VMAs of a space apart, by number."""
        return list(self.attributed(number).groups.values())


def collect(
    reader: TraceReader,
    update: Callable[[int], None],
    viewer: TraceViewer | None = None,
    semantics: Semantics | None = None,
) -> Collected:
    """Replay a trace to its end.  update is told how many bytes of the file have been read."""
    collected = Collected(reader.header, viewer, semantics)
    for record in reader:
        collected.step(record)
        if record.n % 512 == 0:
            update(reader.bytes_read)
    collected.finish()
    collected.shortcomings = reader.shortcomings()
    return collected
