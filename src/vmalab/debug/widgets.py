"""Widgets of the debugger's application: lists of any length that draw only the rows that are seen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, final

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input

_PLACEHOLDER: Final = "a command, such as break maps > 1000; F1 for help"
_DRAWN: Final = 2000
"""Rows that are kept as they were drawn."""


class Rows(ScrollView, can_focus=False):
    """A list of rows, each one line, drawn when they come into sight.  Text is shown as it is: there is no markup."""

    DEFAULT_CSS = """
    Rows { overflow-x: auto; overflow-y: scroll; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }
    """

    class Chosen(Message):
        """A row was clicked."""

        def __init__(self, rows: Rows, place: int) -> None:
            super().__init__()
            self.rows = rows
            self.place = place

        @property
        def control(self) -> Rows:
            """The list."""
            return self.rows

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._count = 0
        self._width = 1
        self._draw: Callable[[int], Text] = lambda place: Text()
        self._drawn: OrderedDict[int, Text] = OrderedDict()
        self._paused = False
        self.cursor: int = -1
        """The row that is marked; -1 for none."""

    def set_rows(self, count: int, draw: Callable[[int], Text], cursor: int = -1) -> None:
        """Show other rows: as many, drawn by a function of their place, one of them marked."""
        self._count = count
        self._draw = draw
        self._drawn.clear()
        self.virtual_size = Size(self._width, max(count, 1))
        self.mark(cursor)
        self.refresh()

    def set_lines(self, lines: Sequence[Text], cursor: int = -1, *, top: bool = False) -> None:
        """Show these lines; with top the marked one as the first that is seen."""
        self._width = max([line.cell_len for line in lines], default=1)
        self.set_rows(len(lines), lines.__getitem__, -1 if top else cursor)
        if top:
            self.scroll_to(y=max(cursor, 0), animate=False, immediate=True)

    def mark(self, cursor: int) -> None:
        """Mark a row, and bring it into sight."""
        self.cursor = cursor
        if cursor >= 0:
            self.scroll_to_region(
                Region(0, max(cursor - 1, 0), 1, 3), animate=False, force=True, x_axis=False, immediate=True
            )
        self.refresh()

    def pause(self, paused: bool) -> None:
        """While paused, nothing is drawn that is not there: what rows are drawn from is changing."""
        self._paused = paused
        if not paused:
            self.refresh()

    def text(self, place: int) -> Text:
        """A row as it is drawn."""
        found = self._drawn.get(place)
        if found is None:
            if self._paused or not 0 <= place < self._count:
                return Text()
            found = self._drawn[place] = self._draw(place)
            if len(self._drawn) > _DRAWN:
                self._drawn.popitem(last=False)
        return found

    def render_line(self, y: int) -> Strip:
        left, top = self.scroll_offset
        place = top + y
        text = self.text(place)
        base = self.rich_style
        if place == self.cursor:
            base += Style(reverse=True)
        segments = [
            Segment(each.text, base + (each.style or Style())) for each in text.render(self.app.console, end="")
        ]
        width = self.size.width
        return Strip(segments).crop_extend(left, left + width, base)

    def on_click(self, event: events.Click) -> None:
        """Tell which row was clicked."""
        place = self.scroll_offset.y + event.get_content_offset_capture(self).y
        if 0 <= place < self._count:
            self.post_message(self.Chosen(self, place))


@final
class Prompt(Input):
    """The line that commands are typed in; up and down go through those before."""

    class Left(Message):
        """The user goes back to the keys of the application."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back to the keys")]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, compact=True, select_on_focus=False, placeholder=_PLACEHOLDER)
        self._before: list[str] = []
        self._place = 0

    def remember(self, line: str) -> None:
        """Keep a line for later."""
        if line and (not self._before or self._before[-1] != line):
            self._before.append(line)
        self._place = len(self._before)

    def on_key(self, event: events.Key) -> None:
        """Go through the lines before."""
        if event.key in ("up", "down"):
            step = -1 if event.key == "up" else 1
            self._place = max(0, min(len(self._before), self._place + step))
            self.value = self._before[self._place] if self._place < len(self._before) else ""
            self.cursor_position = len(self.value)
            event.prevent_default()
            event.stop()

    def action_leave(self) -> None:
        """Leave the line."""
        self.post_message(self.Left())
