"""Starting costs little: what the command line does not need is not imported."""

import os
import subprocess
import sys


def _modules(code: str) -> set[str]:
    environment = {**os.environ, "VMALAB_PURE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_package_imports_nothing_of_the_model() -> None:
    assert {name for name in _modules("import vmalab") if name.startswith("vmalab.")} == {"vmalab._form"}


def test_a_name_of_the_package_is_imported_when_it_is_asked_for() -> None:
    assert "vmalab.machine" in _modules("from vmalab import Machine")


def test_the_help_imports_nothing_of_the_model() -> None:
    code = "from vmalab.cli import main; main(['--help'], standalone_mode=False)"
    loaded = _modules(code)
    assert "vmalab.cli" in loaded
    assert "vmalab.machine" not in loaded
    assert "rich" not in loaded
    assert "msgspec" not in loaded


def test_all_names_are_there() -> None:
    import vmalab

    for name in vmalab.__all__:
        assert getattr(vmalab, name) is not None
        assert name in dir(vmalab)
