"""The two forms of the core: each can be asked for, and tells which it is."""

import os
import subprocess
import sys

import vmalab


def _form(asked: str) -> str:
    environment = {**os.environ, "VMALAB_PURE": asked}
    code = "import vmalab, vmalab.addr; print(vmalab.form(), vmalab.addr.__file__.endswith('.py'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_interpreted_form_can_be_asked_for() -> None:
    assert _form("1") == "interpreted True"


def test_without_the_variable_the_compiled_form_is_taken_where_it_is() -> None:
    assert _form("0") in ("compiled False", "interpreted True")


def test_this_run_tells_its_form() -> None:
    assert vmalab.form() in ("compiled", "interpreted")
    if os.environ.get("VMALAB_PURE") == "1":
        assert vmalab.form() == "interpreted"
