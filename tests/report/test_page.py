"""The page in a browser: scrubbed, zoomed, asked for a story; and nothing in it runs that came from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.report import make_trace
from tests.browser import chromium, open_page, why_no_browser
from tests.report.test_lives import collected
from tests.report.traces import BASE, ENDING, PAGE, SCRIPT, demo, made_up
from vmalab.explain.story import Story
from vmalab.report.collect import collect
from vmalab.report.html import report_html
from vmalab.trace import records
from vmalab.trace.file import read_trace
from vmalab.trace.replay import Replay

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MISSING = why_no_browser()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for name, trace in (("demo", demo()), ("made-up", made_up())):
        made[name] = folder / f"{name}.html"
        made[name].write_text(report_html(collected(trace), trace[0], name), "utf-8")
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser: Browser, paths: dict[str, Path]) -> Iterator[Page]:
    with open_page(browser, paths["made-up"]) as page:
        yield page


@pytest.fixture
def page(opened: Page) -> Page:
    """The page of the made-up trace, as it is when it has been opened."""
    opened.evaluate("vmalab.chooseSpace(0)")
    opened.locator("#picture").focus()
    return opened


def state(page: Page, what: str) -> Any:
    return page.evaluate(f"vmalab.{what}")


def place(page: Page, record: float, address: int) -> tuple[float, float]:
    """Where on the screen the middle of a record and an address are."""
    page.wait_for_timeout(50)
    box = page.locator("#picture").bounding_box()
    assert box is not None
    x = state(page, f"picture.x({record})")
    y = state(page, f"picture.y(vmalab.picture.scale.of({address}))")
    return box["x"] + x, box["y"] + y


def until(page: Page, condition: str) -> None:
    """Wait for something to become true.  (Playwright's own waiting is refused by the policy of the page.)"""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never: {condition}"
        page.wait_for_timeout(20)


def width(page: Page, axis: str) -> float:
    return float(state(page, f"view.{axis}1") - state(page, f"view.{axis}0"))


def test_scrubbing_moves_through_the_records(page: Page) -> None:
    page.locator("#scrub").fill("4")
    until(page, "document.getElementById('call').textContent.startsWith('mmap(0x10000000')")
    assert page.locator("#count").text_content() == "2 VMAs of 65,530"
    before = page.evaluate("document.getElementById('strip').toDataURL()")
    page.locator("#scrub").fill("8")
    until(page, "document.getElementById('call').textContent.startsWith('madvise(')")
    assert page.locator("#count").text_content() == "8 VMAs of 65,530"
    assert page.evaluate("document.getElementById('strip').toDataURL()") != before
    page.locator("#record").fill("9")
    page.locator("#record").press("Enter")
    until(page, "document.getElementById('call').textContent.endsWith('= ENOMEM')")


def test_keys_move_through_records_and_vmas(page: Page) -> None:
    page.keyboard.press("Home")
    assert state(page, "n") == 1
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert state(page, "n") == 12
    page.keyboard.press("p")
    assert state(page, "n") == 9, "the call that failed"
    page.keyboard.press("ArrowUp")
    assert state(page, "selected") == BASE
    page.keyboard.press("ArrowUp")
    assert state(page, "selected") == BASE + 4 * PAGE
    assert "---p" in (page.locator("#vma-title").text_content() or "")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_numbers_and_reasons_have_room(page: Page) -> None:
    """A number stays on one line, and every reason of the map count can be seen without scrolling."""
    page.get_by_role("tab", name="What made VMAs").click()
    lines = page.evaluate(
        "[...document.querySelectorAll('#makers td.number')].map((cell) => { cell.textContent = '1,234,567';"
        " const all = document.createRange(); all.selectNodeContents(cell); return all.getClientRects().length; })"
    )
    assert set(lines) == {1}
    assert page.evaluate("(({ scrollHeight, clientHeight }) => scrollHeight - clientHeight)(legend)") == 0
    page.get_by_role("tab", name="Boundaries").click()


def test_play_runs_to_the_end(page: Page) -> None:
    page.locator("#speed").select_option("5")
    page.locator("#picture").focus()
    page.evaluate("vmalab.goTo(13)")
    page.keyboard.press("Space")
    assert page.locator("#play").text_content() == "Stop"
    until(page, "!vmalab.playing")
    assert state(page, "n") == state(page, "space.last")


def test_zoom_by_wheel_box_and_key(page: Page) -> None:
    whole = width(page, "n"), width(page, "y")
    drawn = page.evaluate("document.getElementById('lives').toDataURL()")
    page.mouse.move(*place(page, 6, BASE + 2 * PAGE))
    page.mouse.wheel(0, -200)
    until(page, f"vmalab.view.n1 - vmalab.view.n0 < {whole[0]}")
    assert width(page, "y") == whole[1]
    page.wait_for_timeout(100)
    assert page.evaluate("document.getElementById('lives').toDataURL()") != drawn
    page.keyboard.press("0")
    assert (width(page, "n"), width(page, "y")) == whole
    x, y = place(page, 4, BASE * 3)
    page.mouse.move(x, y)
    page.mouse.down()
    x, y = place(page, 11, BASE + PAGE)
    page.mouse.move(x, y, steps=3)
    page.mouse.up()
    assert width(page, "n") == pytest.approx(7, abs=0.2)
    assert width(page, "y") < whole[1]
    page.keyboard.press("0")
    page.keyboard.press("+")
    page.keyboard.press("]")
    assert width(page, "n") < whole[0]
    assert width(page, "y") < whole[1]
    page.locator("#heights").select_option("bytes")
    page.wait_for_timeout(100)
    assert page.evaluate("document.getElementById('lives').toDataURL()") != drawn
    page.locator("#heights").select_option("even")


def test_a_click_on_a_vma_tells_its_story(page: Page) -> None:
    page.mouse.click(*place(page, 13.5, BASE + 3 * PAGE))
    assert state(page, "n") == 13
    assert page.locator("#vma-title").text_content() == "10002000-10004000 r--p anonymous"
    story = page.locator("#story").inner_text()
    assert "mmap(0x10000000, 65536, PROT_READ|PROT_WRITE" in story
    assert "mapped as 10000000-10010000 rw-p anonymous" in story
    assert "was written to for the first time" in story
    assert story.index("unmapped, with 10002000-10004000") < story.index("mapped as 10002000-10004000 r--p")
    page.locator("#story li button").first.click()
    assert state(page, "n") == 4


def test_hovering_shows_the_attributes(page: Page) -> None:
    page.mouse.move(*place(page, 6.5, BASE * 2 + PAGE))
    tip = page.locator("#tip")
    tip.wait_for()
    assert SCRIPT in tip.inner_text()
    assert "20000000-20004000 r--p" in tip.inner_text()
    page.mouse.move(5, 5)
    tip.wait_for(state="hidden")


def test_a_path_of_html_stays_text(page: Page) -> None:
    assert page.locator("h1").text_content() == f"/bin/sh -c cat {ENDING}"
    for path, addr in ((SCRIPT, BASE * 2), (ENDING, BASE * 3)):
        page.mouse.click(*place(page, 6.5, addr + PAGE))
        assert path in (page.locator("#vma-title").text_content() or "")
        assert path in page.locator("#vma-facts").inner_text()
        assert path in page.locator("#story").inner_text()
    assert page.evaluate("document.scripts.length") == 5
    assert page.evaluate("document.images.length") == 0


def test_boundaries_and_failures_and_makers(page: Page) -> None:
    page.locator("#scrub").fill("8")
    boundaries = page.locator("#boundaries")
    until(page, "document.getElementById('boundaries').textContent.includes('At record 8')")
    assert "not copied on fork (MADV_DONTFORK)" in boundaries.inner_text()
    boundaries.get_by_text("not copied on fork (MADV_DONTFORK)").click()
    boundaries.get_by_role("button", name="10008000").click()
    assert state(page, "selected") == BASE + 8 * PAGE
    page.locator("#tab-failures").click()
    failures = page.locator("#failures").inner_text()
    assert "ENOMEM" in failures
    assert "nothing is mapped at 0x40000000" in failures
    page.locator("#tab-failures").press("ArrowRight")
    assert "mprotect(PROT_NONE)" in page.locator("#makers").inner_text()
    page.locator("#tab-boundaries").click()


def test_another_process_is_chosen(page: Page) -> None:
    page.locator("#space").select_option("1")
    page.keyboard.press("Escape")
    assert state(page, "space.pid") == 101
    page.evaluate(f"vmalab.goTo(13); vmalab.select({BASE})")
    story = page.locator("#story").inner_text()
    assert "inherited by fork" in story
    assert "process 100" in story, "what happened before the fork is told as well"


def test_light_and_dark(browser: Browser, paths: dict[str, Path]) -> None:
    with open_page(browser, paths["made-up"], "dark") as page:
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        picture = page.evaluate("document.getElementById('lives').toDataURL()")
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
        page.wait_for_timeout(100)
        assert page.evaluate("document.getElementById('lives').toDataURL()") != picture


def test_the_page_tells_what_the_model_has(browser: Browser, paths: dict[str, Path]) -> None:
    """At some records of a real program the same VMAs, and of some addresses the same story as the command tells."""
    header, made = demo()
    with open_page(browser, paths["demo"]) as page:
        page.evaluate("vmalab.chooseSpace(0)")
        replay = Replay(header)
        for record in made:
            replay.step(record)
            process = replay.process(made[0].pid)  # type: ignore[union-attr]
            if process is None or record.n % 40:
                continue
            shown = state(
                page, f"space.rowsAt({record.n}).map((r) => [vmalab.space.startOf(r), vmalab.space.endOf(r)])"
            )
            assert shown == [[vma.start, vma.end] for vma in process.vmas()]
        for addr in [start for start, _ in shown][::20]:
            story = Story(addr)
            story.replay = Replay(header, observer=story)
            for record in made:
                story.step(record)
            pid = made[0].pid  # type: ignore[union-attr]
            expected = [line.what for line in story.lines if pid in line.pids]
            page.evaluate(f"vmalab.select({addr})")
            assert page.locator("#story li > div > p:not(.by)").all_text_contents() == expected


def test_a_trace_without_a_process_says_so(browser: Browser, tmp_path: Path) -> None:
    header, _ = made_up()
    end: list[records.Record] = [records.End(1, "done")]
    path = tmp_path / "empty.html"
    path.write_text(report_html(collected((header, end)), header, "empty"), "utf-8")
    with open_page(browser, path) as page:
        assert "There is no address space in this trace." in page.locator("#notes").inner_text()
        assert not page.locator("main").is_visible()


def test_a_long_trace_opens_light(browser: Browser, tmp_path: Path) -> None:
    """What is made at the start does not grow with the trace: by counts, which no clock changes."""
    calls = 2000
    make_trace(tmp_path / "long.jsonl", calls, 1)
    reader = read_trace(tmp_path / "long.jsonl")
    found = collect(reader, lambda _: None)
    html = report_html(found, reader.header, "long")
    (tmp_path / "long.html").write_text(html, "utf-8")
    assert len(html) < 200_000 + 45 * calls, "bytes of the page"
    with open_page(browser, tmp_path / "long.html", size=(360, 900)) as page:
        assert page.evaluate("document.getElementsByTagName('*').length") < 600
        n, sums = page.evaluate("vmalab.chart.plot.data.slice(0, 2).map((column) => Array.from(column))")
        assert len(n) < page.evaluate("vmalab.chart.records.length")
        assert len(n) <= 3 * page.evaluate("document.getElementById('chart').clientWidth") + 6
        assert max(sums) == max(found.lives.spaces[0].map_count), "no peak of a moment is missed"
        assert sums == page.evaluate(f"{n}.map((n) => vmalab.space.mapCountAt(n))"), "the layers add up"
        assert [page.locator(f"#{name} > *").count() for name in ("failures", "makers")] == [0, 0]
        page.locator("#tab-failures").click()
        assert page.locator("#failures details").count() > 0
        assert page.locator("#failures li").count() < 10, "the calls of a group are listed when it is opened"
        group = page.locator("#failures details:not([open])").first
        group.locator("summary").click()
        until(page, "document.querySelectorAll('#failures li').length > 3")


def test_on_a_narrow_screen_nothing_is_cut_off(browser: Browser, paths: dict[str, Path]) -> None:
    with open_page(browser, paths["demo"], size=(420, 900)) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
