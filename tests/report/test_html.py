"""The file: whole, small, and nothing in it but text that can do no harm."""

import base64
import hashlib
import json
import os
import re
import zlib
from array import array
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.programs import vmalab
from tests.report.test_lives import collected
from tests.report.traces import ENDING, SCRIPT, made_up, write
from vmalab.report.html import SCRIPTS, json_for_script, report_html
from vmalab.report.pack import Columns, Places


def page() -> str:
    trace = made_up()
    return report_html(collected(trace), trace[0], "made up")


def test_no_text_from_outside_is_html() -> None:
    html = page()
    assert html.count("<script") == html.count("</script>") == 5
    assert "alert(" in html, "the paths are there"
    for match in re.finditer(r"alert\(", html):
        assert html[: match.start()].endswith("\\u003e")
    assert SCRIPT not in html
    assert ENDING not in html
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert SCRIPT in {row["name"] for row in data["attributes"]}
    assert data["spaces"][0]["exe"] == SCRIPT


def test_the_policy_lets_nothing_run_but_the_code() -> None:
    html = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none';")
    assert "unsafe" not in policy.group(1)
    codes = re.findall(r"<script(?: type=\"module\" async)?>(.*?)</script>", html, re.DOTALL)
    assert len(codes) == 2
    for code in codes:
        assert base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() in policy.group(1)


def test_the_code_makes_no_html_of_text() -> None:
    """Nor does it ask for anything over a network."""
    code = "\n".join((files("vmalab.report") / "page" / name).read_text("utf-8") for name in SCRIPTS)
    for never in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http"):
        assert never not in code, never


def test_the_library_is_the_one_that_is_named() -> None:
    folder = files("vmalab.report") / "uplot"
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (folder / "VERSION.txt").read_text("utf-8"), re.MULTILINE)
    assert {name for _, name in listed} == {"LICENSE", "uPlot.iife.min.js", "uPlot.min.css"}
    for checksum, name in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists))
def test_json_cannot_end_its_script(value: object) -> None:
    text = json_for_script(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


@given(st.lists(st.integers(0, 2**32 - 1)), st.lists(st.integers(0, 2**47)), st.binary())
def test_columns_come_back(numbers: list[int], addresses: list[int], raw: bytes) -> None:
    """As the page reads them."""
    places = Places([array("Q", addresses)])
    columns = Columns()
    columns.add("raw", raw)
    columns.add("numbers", array("I", numbers), "numbers")
    columns.add("again", array("I", numbers), "numbers")
    columns.add("places", places.addresses())
    columns.add("addresses", places.numbers(addresses))
    data = zlib.decompress(base64.b64decode(columns.text()), -zlib.MAX_WBITS)
    read: dict[str, array[float]] = {}
    for name, (kind, at, length, less) in columns.index().items():
        column: array[float] = array({"u8": "B", "u16": "H", "u32": "I", "f64": "d"}[kind])
        column.frombytes(data[at : at + length * column.itemsize])
        assert at % 8 == 0
        for i in range(length if less else 0):
            base = (column[i - 1] if i else 0) if less == name else read[less][i]
            column[i] = (int(column[i]) + int(base)) & ((1 << 8 * column.itemsize) - 1)
        read[name] = column
    assert bytes(map(int, read["raw"])) == raw
    assert list(read["numbers"]) == list(read["again"]) == numbers
    assert [read["places"][int(i)] for i in read["addresses"]] == addresses


def test_the_command(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.jsonl", made_up())
    done = vmalab("report", str(trace), "-o", str(tmp_path / "out.html"), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["records"], told["address_spaces"], told["failed"]) == (17, 2, 1)
    assert told["written"] == [{"output": str(tmp_path / "out.html"), "bytes": (tmp_path / "out.html").stat().st_size}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "t.jsonl"]
    piped = vmalab("report", str(trace), "-o", "-")
    assert piped.stdout == (tmp_path / "out.html").read_text("utf-8")


def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.jsonl", made_up())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text, "utf-8")
        assert vmalab("report", str(trace), "-o", str(pipe)).returncode == 0
        assert read.result().startswith("<!doctype html>")
    assert pipe.is_fifo()
    (tmp_path / "link.html").symlink_to("page.html")
    assert vmalab("report", str(trace), "-o", str(tmp_path / "link.html")).returncode == 0
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")


def test_nothing_is_written_over_what_is_read(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.jsonl", made_up())
    before = trace.read_bytes()
    for options in (["-o", str(trace)], ["--trace-viewer", str(trace)]):
        done = vmalab("report", str(trace), *options)
        assert done.returncode == 2
        assert done.stderr == f"vmalab: {trace} is what is read, and would be lost: name another with -o\n"
        assert trace.read_bytes() == before
    both = vmalab("report", str(trace), "-o", str(tmp_path / "x"), "--trace-viewer", str(tmp_path / "x"))
    assert both.returncode == 2
    assert "can hold one thing" in both.stderr
    assert not (tmp_path / "x").exists()


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.jsonl", made_up())
    done = vmalab("report", str(trace), "-o", str(tmp_path / "nowhere" / "out.html"))
    assert done.returncode == 2
    assert done.stderr.startswith("vmalab: ")
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
