"""What a notebook is shown: HTML in which nothing from outside is more than text."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.traces import BASE, ENDING, PAGE, SCRIPT, made_up, write
from vmalab import File, Machine, Trace
from vmalab.errors import InputError
from vmalab.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_NONE, PROT_READ
from vmalab.notebook import PIECES, ROWS

FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


HARMLESS = {"style", "title", "width", "height", "viewbox", "role", "aria-label", "d", "fill", "stroke", "stroke-width"}


class Seen(HTMLParser):
    """The elements and the text of HTML that is well formed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.titles: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]
        assert {name for name, _ in attrs} <= {
            "style",
            "title",
            "width",
            "height",
            "viewbox",
            "role",
            "aria-label",
            "d",
        } | {
            "fill",
            "stroke",
            "stroke-width",
        }

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_process_shows_its_vmas() -> None:
    process = Machine().process()
    process.mmap(BASE, 4 * PAGE, flags=FIXED)
    process.mmap(BASE + 4 * PAGE, PAGE, PROT_NONE, FIXED)
    process.mmap(BASE * 2, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, File(SCRIPT, "08:01", 3))
    seen = Seen(process._repr_html_())
    assert "script" not in seen.tags
    assert seen.tags.count("tr") == 4
    assert SCRIPT in seen.text
    assert seen.titles == [
        "10000000-10004000 rw-p anonymous",
        "10004000-10005000 ---p anonymous",
        f"20000000-20001000 r--p {SCRIPT}",
    ]
    assert repr(process) == "<Process 1: 3 VMAs>"


def test_very_many_vmas_are_not_all_shown() -> None:
    process = Machine().process()
    for i in range(PIECES + 50):
        process.mmap(BASE + 2 * i * PAGE, PAGE, flags=FIXED)
    seen = Seen(process._repr_html_())
    assert len(seen.titles) == PIECES
    assert seen.tags.count("tr") == ROWS + 1
    assert f"and {PIECES + 50 - ROWS:,} more" in seen.text


def test_a_process_without_memory_shows_that() -> None:
    assert "0 VMAs" in Seen(Machine().process()._repr_html_()).text


def test_a_trace_shows_its_programs(tmp_path: Path) -> None:
    trace = Trace.open(write(tmp_path / "t.jsonl", made_up()))
    seen = Seen(trace._repr_html_())
    assert "script" not in seen.tags
    assert {"svg", "path", "table"} <= set(seen.tags)
    assert SCRIPT in seen.text
    assert ENDING in seen.text
    assert "process calls VMAs peak replay program   100 8 8 9 as recorded" in seen.text
    assert repr(trace).startswith(f"<Trace {tmp_path}/t.jsonl: /bin/sh -c cat")


def test_a_trace_is_read_as_often_as_one_likes(tmp_path: Path) -> None:
    trace = Trace.open(write(tmp_path / "t.jsonl", made_up()))
    assert [record.n for record in trace] == [record.n for record in trace] == list(range(1, 18))
    early = trace.replay(at=4).process(100)
    late = trace.replay(at=8).process(100)
    assert early is not None
    assert late is not None
    assert (len(early.vmas()), len(late.vmas())) == (2, 8)
    assert trace.replay().process(100) is None, "it has exited"


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no trace\n")
    with pytest.raises(InputError, match="is not a trace"):
        Trace.open(path)
    with pytest.raises(InputError, match="standard input"):
        Trace.open("-")
