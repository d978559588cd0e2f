"""The build: the core compiled by mypyc, and the recorder in C.

VMALAB_BUILD says what is wanted: "auto" (the default: compile if that works, else install the interpreted form and say
so), "compiled" (fail if it does not work) or "interpreted" (compile nothing: a wheel is then for every machine).
"""

import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
PACKAGE = Path("src/vmalab")
NATIVE = PACKAGE / "live/build_native.py"
PROGRAMS = "_native"
"""The folder of what it builds."""


def wanted() -> str:
    """What VMALAB_BUILD asks for."""
    value = os.environ.get("VMALAB_BUILD", "auto")
    if value not in ("auto", "compiled", "interpreted"):
        sys.exit(f"VMALAB_BUILD is {value!r}; it must be auto, compiled or interpreted")
    return value


def sources() -> list[str]:
    """The modules to compile, as pyproject.toml lists them."""
    with (HERE / "pyproject.toml").open("rb") as file:
        lists = tomllib.load(file)["tool"]["vmalab"]["build"]
    root = HERE / PACKAGE
    left_out = {root / name for name in lists["interpreted"]}
    found = {path for pattern in lists["compiled"] for path in root.glob(pattern)} - left_out
    return [str(path.relative_to(HERE)) for path in sorted(found)]


def core() -> list[Extension]:
    """The extension modules that mypyc makes of the core.  Type-checks and writes C; the compiler has not run yet."""
    from mypyc.build import mypycify

    # The options stand here, not in a configuration file: the strictness that `make types` asks for must not keep
    # anyone from installing with another mypy.
    options = ["--config-file=", "--always-true=COMPILED", "--explicit-package-bases"]
    os.environ["MYPYPATH"] = "src"
    extensions: list[Extension] = mypycify([*options, *sources()], opt_level="3", group_name="vmalab")
    for extension in extensions:
        if os.name == "posix":
            extension.extra_compile_args.append("-fvisibility=hidden")
    return extensions


def say(text: str) -> None:
    print(f"vmalab: {text}", file=sys.stderr, flush=True)


class BuildCore(build_ext):
    """Compiles the core; what it compiles is known only when it runs, because finding that out type-checks the core."""

    def run(self) -> None:
        if self.inplace:
            remove_stale()
        want = wanted()
        if want == "interpreted":
            self.extensions = []
            return
        try:
            self.distribution.ext_modules = core()
            self.swig_opts = None  # finalize_options() cannot read its own result
            self.finalize_options()
            super().run()
        except (Exception, SystemExit) as error:
            if want == "compiled":
                raise
            self.extensions = []
            remove_stale()
            remove_stale(Path(self.build_lib))
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            say(f"the core could not be compiled ({reason[0]}); installing the interpreted form, same results, slower")


class BuildPackage(build_py):
    """Builds the C helpers beside the Python files; a wheel for every machine has none."""

    def run(self) -> None:
        if wanted() != "interpreted":
            build_native()
        super().run()

    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        found: list[str] = super().find_data_files(package, src_dir)
        if wanted() != "interpreted":
            return found
        return [path for path in found if Path(path).parent.name != PROGRAMS]


class BuildNative(Command):
    """Builds the C helpers alone."""

    description = "build the C helpers"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        """Nothing to set: there are no options."""

    def finalize_options(self) -> None:
        """Nothing to settle."""

    def run(self) -> None:
        build_native()


def remove_stale(root: Path = HERE / "src") -> None:
    """Remove extension modules of an earlier build: one left behind would hide its source."""
    for pattern in ("*.so", "*.pyd"):
        for path in root.rglob(pattern):
            path.unlink()


def build_native() -> None:
    """Build the recorder in C where it can run: Linux on x86-64."""
    if not NATIVE.exists() or sys.platform != "linux" or platform.machine() != "x86_64":
        return
    done = subprocess.run([sys.executable, str(NATIVE)], check=False)
    if done.returncode != 0:
        if wanted() == "compiled":
            sys.exit("vmalab: the recorder could not be built")
        say("the recorder could not be built; everything but `vmalab record` works")


if __name__ == "__main__":
    os.chdir(HERE)
    placeholder = Extension("vmalab__mypyc", [])
    ext_modules = [] if wanted() == "interpreted" else [placeholder]
    commands = {"build_ext": BuildCore, "build_native": BuildNative, "build_py": BuildPackage}
    setup(ext_modules=ext_modules, cmdclass=commands)
