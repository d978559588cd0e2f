"""The debugger as an application in the terminal."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from time import monotonic
from typing import ClassVar, Final, final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static, TabbedContent, TabPane

from vmalab.debug.breakpoints import FORMS
from vmalab.debug.commands import COMMANDS, Answer, Debugger, breakpoint_line, process_line
from vmalab.debug.show import BAD, DIM, HEAD, WARN, row, step_lines, vma_text
from vmalab.debug.widgets import Prompt, Rows
from vmalab.errors import VmalabError
from vmalab.text import count_text, escape_text

MIN_WIDTH: Final = 78
"""Columns that the drawing of a step takes at least."""
WIDE: Final = 150
"""From how many columns on the records stand beside the rest."""
_OUTPUT: Final = 10_000
"""Lines of output that are kept."""
_TELL: Final = 0.1
"""Seconds between two words about how far a run is."""

KEYS: Final = (
    ("down  j  s", "a step forward"),
    ("up  k  b", "a step back"),
    ("pgdn pgup  J K", "ten steps forward, back"),
    ("home end", "the first record, the last"),
    ("c  right", "on to the next breakpoint"),
    ("r  left", "back to the breakpoint before"),
    ("g", "go to a record"),
    ("t", "stop at the next record that acts on this place (break address)"),
    (":  enter", "type a command; escape returns to the keys, or stops a run"),
    ("1 ... 6  tab", "action, VMAs, not merged, processes, breakpoints, output"),
    ("a", "go through the records of this process alone, or of all"),
    ("q", "leave"),
    ("mouse", "click a record to go there, a process to choose it, a breakpoint to switch it"),
)
TABS: Final = ("action", "vmas", "obstacles", "processes", "breakpoints", "output")


class Interrupted(Exception):
    """The user wants a run to stop."""


class HelpScreen(ModalScreen[None]):
    """Keys and commands."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,f1,enter", "app.pop_screen", "Close")]
    CSS = """
    HelpScreen { align: center middle; }
    HelpScreen VerticalScroll { width: 92%; height: 92%; border: round $accent; padding: 0 1; }
    """

    def compose(self) -> ComposeResult:
        with VerticalScroll() as scroll:
            scroll.can_focus = True
            yield Static(Text("\n").join(self.lines()), markup=False)

    @staticmethod
    def lines() -> list[Text]:
        """What there is to know."""
        lines = [Text("Keys (escape closes this)", HEAD)]
        lines += [Text.assemble((f"  {keys:<16}", "cyan"), what) for keys, what in KEYS]
        lines += [Text(), Text("Commands", HEAD)]
        lines += [Text.assemble((f"  {each.usage:<24}", "cyan"), each.says) for each in COMMANDS]
        lines += [Text(), Text("break CONDITION, one of", HEAD)]
        lines += [Text(f"  {form}") for form in FORMS]
        lines += [
            Text(),
            Text("The strip", HEAD),
            Text(
                "  A letter is a VMA that was there before, a digit one that is new; . is not mapped, ^ the place that"
            ),
            Text("  the call acts on.  Below, - is how a VMA was and is no more, + how it is now."),
        ]
        return lines


@final
class DebuggerApp(App[None]):
    """Shows a Debugger, and performs its commands."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "vmalab debug"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]
    CSS = """
    #title { height: 1; background: $primary-background; text-style: bold; }
    #panes { layout: vertical; height: 1fr; }
    #records { height: 7; background: $surface; }
    #records, #vma-rows, #process-rows { overflow-x: hidden; }
    VerticalScroll { scrollbar-size-vertical: 1; }
    #details { height: 1fr; }
    .-wide #panes { layout: horizontal; }
    .-wide #records { height: 1fr; width: 45%; border-right: solid $primary-background; }
    .-wide #details { width: 1fr; }
    Tabs, ContentTabs { height: 1; }
    Underline { display: none; }
    Tab { padding: 0 1; }
    TabPane { padding: 0; }
    TabbedContent, ContentSwitcher, TabPane { height: 1fr; }
    #message { height: 1; background: $surface; }
    #prompt { height: 1; border: none; padding: 0; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j,s", "go('step')", "Step", key_display="↓"),
        Binding("up,k,b", "go('back')", "Back", key_display="↑"),
        Binding("pagedown,J", "go('step 10')", show=False),
        Binding("pageup,K", "go('back 10')", show=False),
        Binding("home", "go('goto 1')", show=False),
        Binding("end", "go('goto end')", show=False),
        Binding("c,right", "go('continue')", "Continue", key_display="c"),
        Binding("r,left", "go('reverse')", "Reverse", key_display="r"),
        Binding("g", "ask('goto ')", "Goto"),
        Binding("t", "break_here", show=False),
        Binding("colon,enter", "ask('')", "Type", key_display=":"),
        *[Binding(str(number), f"tab('{name}')", show=False) for number, name in enumerate(TABS, 1)],
        Binding("tab", "turn(1)", show=False, priority=True),
        Binding("shift+tab", "turn(-1)", show=False, priority=True),
        Binding("a", "alone", "Alone"),
        Binding("f1,question_mark", "help", "Help", key_display="F1"),
        Binding("escape", "stop", show=False),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, debugger: Debugger) -> None:
        super().__init__()
        self.animation_level = "none"
        self.debugger = debugger
        self.busy = False
        """A command is being performed, by another thread."""
        self._stop = False
        self._told = 0.0
        self._numbers: Sequence[int] = ()
        self._pids: list[int] = []
        self._output: list[Text] = []
        self._answer_at = -1

    # -- what is there ------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        yield Static(id="title", markup=False)
        with Container(id="panes"):
            yield Rows(id="records")
            with Vertical(id="details"), TabbedContent(initial="action"):
                with TabPane("Action", id="action"), VerticalScroll(can_focus=False):
                    yield Static(id="step", markup=False)
                with TabPane("VMAs", id="vmas"):
                    yield Rows(id="vma-rows")
                with TabPane("Not merged", id="obstacles"):
                    yield Rows(id="obstacle-rows")
                with TabPane("Processes", id="processes"):
                    yield Rows(id="process-rows")
                with TabPane("Breakpoints", id="breakpoints"):
                    yield Rows(id="breakpoint-rows")
                with TabPane("Output", id="output"):
                    yield Rows(id="output-rows")
        yield Static(id="message", markup=False)
        yield Prompt(id="prompt")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.set_focus(None)
        if self.debugger.timeline.n == 0:
            first = self.debugger.tape.of_process(self.debugger.pid) if self.debugger.pid else [1]
            self.debugger.timeline.goto(first[0])
        self.call_after_refresh(self.show_all)

    def on_resize(self) -> None:
        if not self.busy:
            self.call_after_refresh(self.show_all)

    # -- showing ------------------------------------------------------------------------------------

    def show_all(self) -> None:
        """Show the position everywhere."""
        if self.busy:
            return
        debugger = self.debugger
        self._show_title()
        self._show_records()
        pane = self.query_one("#step", Static)
        debugger.width = max(MIN_WIDTH, self.query_one("#details").size.width - 1)
        pane.update(Text("\n").join(step_lines(debugger.timeline, debugger.width, title=False)))
        self._show_tab()

    def _show_title(self) -> None:
        debugger = self.debugger
        timeline = debugger.timeline
        process = timeline.processes.get(debugger.here)
        parts = [f" {debugger.tape.name.rsplit('/', 1)[-1]}", f"record {timeline.n:,} of {len(debugger.tape):,}"]
        if debugger.here:
            parts.append(f"process {debugger.here}{' alone' if debugger.pid else ''}")
            program = timeline.replay.current.get(debugger.here)
            if program is not None:
                parts[-1] += f" {escape_text(program.exe.rsplit('/', 1)[-1], 20)}"
        if process is not None:
            parts.append(count_text(process.mm.map_count, "VMA"))
        if debugger.breakpoints:
            parts.append(count_text(sum(each.enabled for each in debugger.breakpoints.values()), "breakpoint"))
        if debugger.tape.shortcomings:
            parts.append("the trace is not whole")
        self.query_one("#title", Static).update(Text("  │  ".join(parts)))

    def _show_records(self) -> None:
        debugger = self.debugger
        tape = debugger.tape
        rows = self.query_one("#records", Rows)
        numbers: Sequence[int] = tape.of_process(debugger.pid) if debugger.pid else range(1, len(tape) + 1)
        cursor = bisect_left(numbers, max(debugger.timeline.n, 1))
        if numbers is self._numbers or (isinstance(numbers, range) and numbers == self._numbers):
            rows.mark(min(cursor, len(numbers) - 1))
            return
        self._numbers = numbers
        digits = len(str(len(tape)))
        alone = bool(debugger.pid)
        rows.set_rows(len(numbers), lambda place: row(tape, numbers[place], digits, pids=not alone), cursor)

    def _show_tab(self) -> None:
        """Fill the tab that is seen."""
        tab = self.query_one(TabbedContent).active
        if tab == "vmas":
            self._show_vmas()
        elif tab == "obstacles":
            self._show_obstacles()
        elif tab == "processes":
            self._pids = list(self.debugger.tape.pids)
            here = self._pids.index(self.debugger.here) if self.debugger.here in self._pids else -1
            draw = lambda place: process_line(self.debugger, self._pids[place])  # noqa: E731
            self.query_one("#process-rows", Rows).set_rows(len(self._pids), draw, here)
        elif tab == "breakpoints":
            lines = [breakpoint_line(each) for each in self.debugger.breakpoints.values()]
            lines = lines or [Text("none; type break and a condition, F1 lists them", DIM)]
            self.query_one("#breakpoint-rows", Rows).set_lines(lines)
        elif tab == "output":
            self.query_one("#output-rows", Rows).set_lines(self._output, self._answer_at, top=True)

    def _show_vmas(self) -> None:
        rows = self.query_one("#vma-rows", Rows)
        timeline = self.debugger.timeline
        process = timeline.processes.get(self.debugger.here)
        if process is None:
            rows.set_lines([Text("no process lives here", DIM)])
            return
        vmas = process.vmas()
        step = timeline.step
        changed = {change.after[0] for change in step.changes if change.mm is process.mm} if step is not None else set()
        place = step.before.intervals[0] if step is not None and step.before.intervals else (0, 0)
        first = next((i for i, vma in enumerate(vmas) if vma.start in changed), -1)
        if first < 0:
            first = next((i for i, vma in enumerate(vmas) if vma.end > place[0]), -1) if place[1] else -1

        def draw(at: int) -> Text:
            vma = vmas[at]
            mark = "+" if vma.start in changed else " "
            text = vma_text(vma, process.name_of(vma), self.debugger.width - 3)
            return Text(f"{mark} {text}", "green" if mark == "+" else "")

        rows.set_rows(len(vmas), draw, first)

    def _show_obstacles(self) -> None:
        rows = self.query_one("#obstacle-rows", Rows)
        try:
            lines, at = self.debugger.nearby_obstacles()
        except VmalabError as error:
            lines, at = [Text(str(error), DIM)], 0
        rows.set_lines(lines, at, top=True)

    def tell(self, text: Text | str) -> None:
        """One line about what has just happened."""
        self.query_one("#message", Static).update(text if isinstance(text, Text) else Text(text))

    # -- commands -----------------------------------------------------------------------------------

    def perform(self, line: str) -> None:
        """Perform a command, in another thread; does nothing while one is being performed."""
        if self.busy:
            return
        self.busy = True
        self._stop = False
        self._told = monotonic()
        for rows in self.query(Rows):
            rows.pause(rows.id != "records")
        self._perform(line)

    @work(thread=True, exclusive=True)
    def _perform(self, line: str) -> None:
        answer: Answer | None = None
        said = Text()
        try:
            answer = self.debugger.execute(line, self._poll)
        except Interrupted:
            said = Text("stopped", WARN)
        except VmalabError as error:
            said = Text(escape_text(str(error)), BAD)
        except Exception as error:
            # What came of a session is not lost for a fault in one command.
            if os.environ.get("VMALAB_DEBUG", "0") not in ("", "0"):
                raise
            said = Text(escape_text(f"internal error: {type(error).__name__}: {error} (please report it)"), BAD)
        self.call_from_thread(self._done, line, answer, said)

    def _poll(self, n: int) -> None:
        """Called by a run now and then."""
        if self._stop:
            raise Interrupted
        if monotonic() - self._told > _TELL:
            self._told = monotonic()
            self.call_from_thread(self.tell, Text(f"at record {n:,} of {len(self.debugger.tape):,}; escape stops", DIM))

    def _done(self, line: str, answer: Answer | None, said: Text) -> None:
        self.busy = False
        for rows in self.query(Rows):
            rows.pause(False)
        if answer is not None and answer.over:
            self.exit()
            return
        if answer is not None and answer.moved:
            first = answer.lines[0] if answer.lines else Text()
            said = first if "breakpoint" in first.plain else Text()
            if self.query_one(TabbedContent).active == "output":
                self.query_one(TabbedContent).active = "action"
        elif answer is not None and answer.lines:
            said = answer.lines[0] if len(answer.lines) == 1 else Text()
            del self._output[:-_OUTPUT]
            self._answer_at = len(self._output)
            self._output += [Text(f"> {escape_text(line)}", HEAD), *answer.lines]
            if len(answer.lines) > 1:
                self.query_one(TabbedContent).active = "output"
        self.tell(said)
        self.show_all()

    # -- keys ---------------------------------------------------------------------------------------

    def action_go(self, line: str) -> None:
        """A key for a command."""
        self.perform(line)

    def action_ask(self, start: str) -> None:
        """Let the user type a command."""
        prompt = self.query_one(Prompt)
        prompt.focus()
        prompt.value = start
        prompt.cursor_position = len(start)

    def action_break_here(self) -> None:
        """A breakpoint at the place of this record."""
        step = self.debugger.timeline.step
        places = self.debugger.places()
        if step is None or not places:
            self.tell(Text("this record acts on no address", WARN))
            return
        low, high = places[-1]
        self.perform(f"break address {low:x}-{high:x}")

    def action_alone(self) -> None:
        """Go through one process, or through all."""
        debugger = self.debugger
        self.perform("process all" if debugger.pid or not debugger.here else f"process {debugger.here}")

    def action_tab(self, name: str) -> None:
        """Show a tab."""
        self.query_one(TabbedContent).active = name

    def action_turn(self, step: int) -> None:
        """Show the next tab, or the one before."""
        tabs = self.query_one(TabbedContent)
        tabs.active = TABS[(TABS.index(tabs.active) + step) % len(TABS)]

    def action_help(self) -> None:
        """Show the keys and commands."""
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen())

    def action_stop(self) -> None:
        """Stop a run."""
        self._stop = True

    # -- events -------------------------------------------------------------------------------------

    def on_input_submitted(self, event: Prompt.Submitted) -> None:
        """A command was typed."""
        prompt = self.query_one(Prompt)
        line = event.value.strip()
        if self.busy:
            return
        prompt.remember(line)
        prompt.value = ""
        if line or self.debugger.repeats:
            self.perform(line)

    def on_prompt_left(self) -> None:
        """Back to the keys; or a run is to stop."""
        self._stop = True
        if not self.busy:
            self.set_focus(None)

    def on_tabbed_content_tab_activated(self) -> None:
        """Fill the tab."""
        if not self.busy:
            self._show_tab()

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """A row was clicked."""
        name = event.rows.id
        if name == "records" and event.place < len(self._numbers):
            self.perform(f"goto {self._numbers[event.place]}")
        elif name == "process-rows" and event.place < len(self._pids):
            pid = self._pids[event.place]
            self.perform("process all" if self.debugger.pid == pid else f"process {pid}")
        elif name == "breakpoint-rows" and event.place < len(self.debugger.breakpoints):
            each = list(self.debugger.breakpoints.values())[event.place]
            self.perform(f"{'disable' if each.enabled else 'enable'} {each.number}")
