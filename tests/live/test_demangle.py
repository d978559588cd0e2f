"""Names of functions as they are written; whatever a symbol table holds."""

import ctypes.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmalab.live.demangle import _LONGEST, demangle

needs_library = pytest.mark.skipif(ctypes.util.find_library("stdc++") is None, reason="libstdc++ is not installed")


@needs_library
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("_ZN2v88internal4Heap14CollectGarbageEi", "v8::internal::Heap::CollectGarbage(int)"),
        ("_ZN4core3ptr4read17h0123456789abcdefE", "core::ptr::read::h0123456789abcdef"),
        ("_ZN3FooplERKS_.part.0", "Foo::operator+(Foo const&) [clone .part.0]"),
    ],
)
def test_names_are_read(name: str, shown: str) -> None:
    assert demangle(name) == shown


@pytest.mark.parametrize("name", ["", "main", "_Z", "_ZN", "_Znonsense", "_ZN\\012", "_Z" + "N" * _LONGEST, "mmap64"])
def test_what_is_no_such_name_stays(name: str) -> None:
    assert demangle(name) == name


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    assert isinstance(demangle("_Z" + text.encode("utf-8", "replace").decode()), str)
