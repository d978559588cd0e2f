"""How an address space and other things show themselves in a notebook: HTML that holds nothing but escaped text.

No script and no style sheet: a notebook may show it to somebody who did not run it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import permissions
from vmalab.kinds import KINDS, kind_of
from vmalab.text import escape_text

if TYPE_CHECKING:
    from vmalab.vma.area import Vma
    from vmalab.world import ProcessState

ROWS: Final = 60
"""How many VMAs are listed."""
PIECES: Final = 600
"""How many VMAs the strip has; of more it shows some that lie evenly."""
_MONO: Final = "font-family:ui-monospace,monospace;font-size:12px"


def safe(text: str, limit: int = 200) -> str:
    """Text from outside as HTML that shows it and does nothing."""
    return html.escape(escape_text(text, limit), quote=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are text."""
    head = "".join([f'<th style="text-align:left">{safe(each)}</th>' for each in heads])
    body = "".join(
        [
            "<tr>" + "".join([f'<td style="text-align:left;{_MONO}">{safe(each)}</td>' for each in row]) + "</tr>"
            for row in rows
        ]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def curve(points: Sequence[tuple[int, int]], label: str) -> str:
    """A step function as a small picture: record and value of each point, in order."""
    if not points:
        return ""
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    most = max([1, *[value for _, value in points]])
    path = f"M0,{60 - points[0][1] / most * 56:.1f}"
    for n, value in points[1:]:
        path += f"H{(n - first) / (last - first) * 600:.1f}V{60 - value / most * 56:.1f}"
    return (
        f'<svg width="600" height="62" viewBox="0 0 600 62" role="img" aria-label="{safe(label)}">'
        f'<path d="{path}H600" fill="none" stroke="#2f6fb5" stroke-width="1.5"/></svg>'
    )


def strip(process: ProcessState, vmas: Sequence[Vma]) -> str:
    """The VMAs side by side in the order of their addresses, wider ones as wider pieces; a space is a gap."""
    shown = vmas if len(vmas) <= PIECES else [vmas[i * len(vmas) // PIECES] for i in range(PIECES)]
    pieces: list[str] = []
    end = -1
    for vma in shown:
        name = process.name_of(vma)
        gap = ";margin-left:4px" if pieces and vma.start != end else ""
        title = safe(f"{vma.start:x}-{vma.end:x} {permissions(vma.flags)} {name or 'anonymous'}")
        pieces.append(
            f'<span title="{title}" style="flex:{int(vma.pages()).bit_length()} 1 1px;'
            f'background:{KINDS[kind_of(vma, name)].light};border-right:1px solid #fff{gap}"></span>'
        )
        end = vma.end
    return f'<div style="display:flex;height:26px;max-width:960px;margin:6px 0">{"".join(pieces)}</div>'


def process_html(process: ProcessState) -> str:
    """A process: its strip, and its VMAs as a table."""
    vmas = process.mm.vmas()
    kinds = sorted({kind_of(vma, process.name_of(vma)) for vma in vmas})
    legend = "".join(
        [
            f'<span style="margin-right:12px"><span style="display:inline-block;width:10px;height:10px;'
            f'background:{KINDS[kind].light}"></span> {safe(KINDS[kind].label)}</span>'
            for kind in kinds
        ]
    )
    rows = [
        (
            f"{vma.start:x}-{vma.end:x}",
            permissions(vma.flags),
            f"{vma.pages():,}",
            KINDS[kind_of(vma, process.name_of(vma))].label,
            process.name_of(vma) or "anonymous",
        )
        for vma in vmas[:ROWS]
    ]
    more = f"<p>… and {len(vmas) - ROWS:,} more: maps() shows all</p>" if len(vmas) > ROWS else ""
    size = sum(vma.pages() for vma in vmas) << PAGE_SHIFT
    title = f"<b>Process {process.pid}</b>: {len(vmas):,} VMAs, {size >> 10:,} KiB"
    listed = table(("range", "permissions", "pages", "kind", "name"), rows)
    return f"<div>{title}{strip(process, vmas)}<div>{legend}</div>{listed}{more}</div>"
