"""The application, used as a user does: keys, the prompt, the mouse; and what it then shows."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from rich.text import Text
from textual.pilot import Pilot
from textual.widgets import Static, TabbedContent

from tests.debug.tapes import made_trace, opened, small
from vmalab.debug.app import TABS, DebuggerApp, HelpScreen
from vmalab.debug.commands import Debugger
from vmalab.debug.widgets import Prompt, Rows
from vmalab.trace.records import Call

Use = Callable[[DebuggerApp, Pilot[None]], Awaitable[None]]


def use(debugger: Debugger, how: Use, size: tuple[int, int] = (80, 24)) -> None:
    """Run the application without a terminal, and use it."""

    async def run() -> None:
        app = DebuggerApp(debugger)
        async with app.run_test(size=size) as pilot:
            await settle(app, pilot)
            await how(app, pilot)

    asyncio.run(run())


async def settle(app: DebuggerApp, pilot: Pilot[None]) -> None:
    """Wait until nothing is being done any more."""
    await pilot.pause()
    await app.workers.wait_for_complete()
    await pilot.pause()
    assert not app.busy


async def press(app: DebuggerApp, pilot: Pilot[None], *keys: str) -> None:
    """Press keys, each after what the one before did."""
    for key in keys:
        await pilot.press(key)
        await settle(app, pilot)


async def enter(app: DebuggerApp, pilot: Pilot[None], line: str) -> None:
    """Type a command at the prompt, and go back to the keys."""
    await pilot.press("colon")
    app.query_one(Prompt).value = line
    await press(app, pilot, "enter", "escape")


def shown(app: DebuggerApp, name: str) -> str:
    """What a widget shows, as text."""
    widget = app.query_one(f"#{name}")
    if isinstance(widget, Rows):
        lines = [widget.render_line(y).text for y in range(widget.size.height)]
        return "\n".join(line.rstrip() for line in lines)
    assert isinstance(widget, Static)
    return str(widget.render())


def screen(app: DebuggerApp) -> list[str]:
    """All rows of the screen."""
    return ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_trace(tmp_path_factory.mktemp("app"), 21, 400)


def test_keys_go_through_the_trace(tmp_path: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        timeline = app.debugger.timeline
        assert timeline.n == 1
        assert "record 1 of 8" in shown(app, "title")
        for key, n in (("down", 2), ("j", 3), ("s", 4), ("up", 3), ("b", 2), ("end", 8), ("home", 1), ("pagedown", 8)):
            await press(app, pilot, key)
            assert timeline.n == n
            assert f"record {n} of 8" in shown(app, "title")
        await press(app, pilot, *["up"] * 4)
        step = shown(app, "step")
        assert "before  AABB" in step
        assert "after   BBBB" in step
        assert "as the model predicts; 2 -> 1 VMA" in step
        assert "mprotect(0x" in shown(app, "records")

    use(opened(small(tmp_path)), how)


def test_everything_fits_on_80_columns_and_24_rows(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "pagedown", "pagedown")
        rows = screen(app)
        assert (len(rows), {len(row) for row in rows}) == (24, {80})
        assert "record 21 of" in rows[0]
        assert any("Action" in row and "Output" in row for row in rows)
        assert "Help" in rows[-1]
        assert "q Quit" in rows[-1]
        assert any("before  " in row or "          " in row for row in rows)

    use(opened(trace), how)


def test_breakpoints_by_the_prompt_and_runs_by_keys(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        timeline = app.debugger.timeline
        await enter(app, pilot, "break call munmap")
        assert "breakpoint 1: call munmap" in shown(app, "message")
        stops = []
        for _ in range(3):
            await press(app, pilot, "c")
            stops.append(timeline.n)
            assert "munmap(" in shown(app, "step")
        await press(app, pilot, "r")
        assert timeline.n == stops[1]
        await press(app, pilot, "5")
        assert "call munmap  stopped 4 times" in shown(app, "breakpoint-rows")
        await pilot.click("#breakpoint-rows", offset=(5, 0))
        await settle(app, pilot)
        assert "(disabled)" in shown(app, "breakpoint-rows")
        await press(app, pilot, "c")
        assert timeline.n == len(app.debugger.tape)
        assert "no breakpoints: the end" in shown(app, "message")

    use(opened(trace), how)


def test_a_wrong_command_is_a_message(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await enter(app, pilot, ":goto 99999")
        assert "there is no record 99,999" in shown(app, "message")
        await enter(app, pilot, "break if map_cnt > 1")
        assert "did you mean map_count" in shown(app, "message")
        await enter(app, pilot, "print [bold]")
        assert "no name bold" in shown(app, "message")
        assert app.debugger.timeline.n == 1
        await press(app, pilot, "down")
        assert app.debugger.timeline.n == 2

    use(opened(trace), how)


def test_a_number_is_typed_behind_goto(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "g", "4", "2", "enter", "escape")
        assert app.debugger.timeline.n == 42

    use(opened(trace), how)


def test_a_fault_in_a_command_does_not_end_the_session(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: object) -> None:
        raise ZeroDivisionError("[bold]")

    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        monkeypatch.setattr(app.debugger, "execute", fail)
        await enter(app, pilot, "where")
        assert "internal error: ZeroDivisionError: [bold] (please report it)" in shown(app, "message")
        monkeypatch.undo()
        await enter(app, pilot, "goto 50")
        assert app.debugger.timeline.n == 50

    use(opened(trace), how)


def test_answers_are_kept_and_lines_come_back(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await enter(app, pilot, "goto 50")
        await enter(app, pilot, "print n * 2")
        assert "100 (0x64)" in shown(app, "message")
        await enter(app, pilot, "maps")
        assert app.query_one(TabbedContent).active == "output"
        assert "> maps" in shown(app, "output-rows").splitlines()[0]
        assert "rw-p" in shown(app, "output-rows")
        await pilot.press("colon", "up", "up")
        assert app.query_one(Prompt).value == "print n * 2"
        await pilot.press("down", "down")
        assert app.query_one(Prompt).value == ""
        await press(app, pilot, "escape", "down")
        assert app.query_one(TabbedContent).active == "action"

    use(opened(trace), how)


def test_every_tab(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await enter(app, pilot, "goto 300")
        process = app.debugger.process()
        await press(app, pilot, "2")
        listed = shown(app, "vma-rows")
        spans = [f"{vma.start:x}-{vma.end:x}" for vma in process.vmas()]
        assert sum(span in listed for span in spans) >= min(len(spans), 8)
        await press(app, pilot, "tab")
        assert app.query_one(TabbedContent).active == "obstacles"
        assert "permissions: below" in shown(app, "obstacle-rows")
        await press(app, pilot, "tab")
        listed = shown(app, "process-rows")
        assert all(str(pid) in listed for pid in list(app.debugger.tape.pids)[:8])
        for name in [*TABS[4:], *TABS]:
            await press(app, pilot, "tab")
            assert app.query_one(TabbedContent).active == name
        await press(app, pilot, "shift+tab")
        assert app.query_one(TabbedContent).active == TABS[-2]

    use(opened(trace), how)


def test_the_mouse_chooses_records_and_processes(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await pilot.click("#records", offset=(10, 5))
        await settle(app, pilot)
        assert app.debugger.timeline.n == 6
        await press(app, pilot, "4")
        await pilot.click("#process-rows", offset=(5, 1))
        await settle(app, pilot)
        pid = list(app.debugger.tape.pids)[1]
        assert app.debugger.pid == pid
        assert f"process {pid} alone" in shown(app, "title")
        await press(app, pilot, "down")
        assert app.debugger.timeline.n in app.debugger.tape.of_process(pid)
        await press(app, pilot, "a")
        assert app.debugger.pid == 0

    use(opened(trace), how)


def test_a_run_can_be_stopped(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debugger = opened(trace)
    reached = asyncio.Event()

    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        loop = asyncio.get_running_loop()
        poll = app._poll

        def slow(n: int) -> None:
            loop.call_soon_threadsafe(reached.set)
            while not app._stop:
                pass
            poll(n)

        monkeypatch.setattr(app, "_poll", slow)
        await enter(app, pilot, "break maps > 1000000")
        await pilot.press("c")
        await reached.wait()
        assert app.busy
        await pilot.press("down")
        await pilot.press("escape")
        await settle(app, pilot)
        assert 1 < debugger.timeline.n < len(debugger.tape)
        assert "stopped" in shown(app, "message")
        assert debugger.timeline.step is not None

    use(debugger, how)


def test_text_from_the_trace_is_no_markup(tmp_path: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "end", "up")
        await enter(app, pilot, "vmas")
        text = "\n".join(screen(app)) + shown(app, "step")
        assert "<script>[bold]x[/bold]\\u202e" in text
        assert "\x1b" not in text
        assert "\u202e" not in text

    use(opened(small(tmp_path)), how, size=(160, 40))


def test_a_wide_terminal_has_the_records_beside(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        records = app.query_one("#records")
        assert records.region.height > 30
        assert records.region.width < 100
        assert app.query_one("#details").region.x > 60
        assert app.debugger.width > 90

    use(opened(trace), how, size=(180, 45))


def test_help_names_all_keys_and_commands(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await pilot.press("f1")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        text = str(app.screen.query_one(Static).render())
        assert "reverse" in text
        assert "break errno ENOMEM" in text
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, HelpScreen)

    use(opened(trace), how)


def test_break_here_and_goto(trace: Path) -> None:
    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await press(app, pilot, "t")
        assert "acts on no address" in shown(app, "message")
        await pilot.press("g")
        prompt = app.query_one(Prompt)
        assert prompt.value == "goto "
        tape = app.debugger.tape
        n = next(n for n in range(30, len(tape)) if isinstance(tape[n], Call))
        prompt.value += f"+{n - 1}"
        await press(app, pilot, "enter", "escape")
        assert app.debugger.timeline.n == n
        await press(app, pilot, "t")
        assert next(iter(app.debugger.breakpoints.values())).text.startswith("address ")

    use(opened(trace), how)


def test_of_a_million_rows_only_those_in_sight_are_drawn(trace: Path) -> None:
    drawn: list[int] = []

    def draw(place: int) -> Text:
        drawn.append(place)
        return Text(f"row {place}")

    async def how(app: DebuggerApp, pilot: Pilot[None]) -> None:
        rows = app.query_one("#records", Rows)
        for cursor in (0, 999_999, 500_000):
            rows.set_rows(1_000_000, draw, cursor)
            await pilot.pause()
            assert f"row {cursor}" in shown(app, "records")
        assert len(drawn) < 200

    use(opened(trace), how)
