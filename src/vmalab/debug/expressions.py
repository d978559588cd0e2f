"""Expressions of the debugger: one line of Python over the names of a moment, and nothing else."""

from __future__ import annotations

import ast
from difflib import get_close_matches
from types import CodeType
from typing import Any, Final, final

from vmalab import flags
from vmalab.debug.moment import NAMES, Moment
from vmalab.errors import InputError
from vmalab.text import escape_text

FUNCTIONS: Final[dict[str, Any]] = {
    each.__name__: each for each in (abs, all, any, bool, hex, int, len, list, max, min, set, sorted, str, sum, tuple)
}
CONSTANTS: Final[dict[str, int]] = {
    name: value
    for name, value in vars(flags).items()
    if name.startswith(("PROT_", "MAP_", "MREMAP_", "MADV_", "MCL_", "VM_")) and isinstance(value, int)
}
_NODES: Final = (
    ast.Expression,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.keyword,
    ast.IfExp,
    ast.Constant,
    ast.Name,
    ast.Attribute,
    ast.Subscript,
    ast.Slice,
    ast.Tuple,
    ast.List,
    ast.Set,
    ast.GeneratorExp,
    ast.ListComp,
    ast.SetComp,
    ast.comprehension,
    ast.expr_context,
    ast.boolop,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
)
_MOST_BITS: Final = 4096
"""Of a number that an expression makes: addresses and their products have room, towers of powers do not."""
_MOST_ITEMS: Final = 1 << 20
_NOT_ATTRIBUTES: Final = frozenset({"format", "format_map"})
_LONGEST: Final = 1000
_SHOWN: Final = 80


@final
class Expression:
    """An expression that can be evaluated at a moment."""

    def __init__(self, text: str) -> None:
        """Raises InputError for what is no expression, or names what there is not."""
        self.text = text.strip()
        tree = _parse(self.text)
        own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for node in ast.walk(tree):
            _check(node, own, self.text)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - own
        tree = ast.fix_missing_locations(_Bounded().visit(tree))
        self._names = {name: NAMES[name] for name in used if name in NAMES}
        self._rest = {name: value for name, value in (FUNCTIONS | CONSTANTS).items() if name in used}
        self._code: CodeType = compile(tree, "<expression>", "eval")
        self.needs_state: bool = any(each.state for each in self._names.values())
        """Whether the trace alone does not tell its value."""
        self.of_record: list[str] = sorted(name for name, each in self._names.items() if each.record)
        """The names that are about a record."""

    def value(self, moment: Moment) -> Any:
        """Its value.  Raises InputError where it has none at that moment."""
        try:
            names = {name: each.get(moment) for name, each in self._names.items()}
            return eval(self._code, {"__builtins__": {}, **_BOUNDED, **self._rest, **names})
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{_quote(self.text)} has no value at record {moment.record.n}: {escape_text(what, _SHOWN)}"
            ) from None


class _Bounded(ast.NodeTransformer):
    """Lets the operators that can make huge values of small ones check first."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        name = type(node.op).__name__
        if name not in _BOUNDED:
            return node
        return ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=[node.left, node.right], keywords=[])


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MOST_BITS:
        raise OverflowError(f"a number of more than {_MOST_BITS:,} bits")
    return left**right


def _left_shift(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right > _MOST_BITS:
        raise OverflowError(f"a number of more than {_MOST_BITS:,} bits")
    return left << right


def _times(left: Any, right: Any) -> Any:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > _MOST_ITEMS:
            raise OverflowError(f"more than {_MOST_ITEMS:,} items")
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MOST_BITS:
        raise OverflowError(f"a number of more than {_MOST_BITS:,} bits")
    return left * right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        raise TypeError("text is not formatted here")
    return left % right


_BOUNDED: Final[dict[str, Any]] = {"Pow": _power, "LShift": _left_shift, "Mult": _times, "Mod": _modulo}
"""By the names of the operators in `ast`, which no name of an expression has."""


def _parse(text: str) -> ast.Expression:
    if not text:
        raise InputError("an expression is missing, such as map_count > 1000; help names lists what it may use")
    if len(text) > _LONGEST:
        raise InputError(f"the expression is longer than {_LONGEST:,} characters")
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"{_quote(text)} is no expression: {escape_text(what, _SHOWN)}") from None


def _check(node: ast.AST, own: set[str], text: str) -> None:
    if not isinstance(node, _NODES):
        raise InputError(f"{_quote(text)}: {type(node).__name__} cannot be used in an expression here")
    if isinstance(node, ast.Attribute) and (node.attr.startswith("_") or node.attr in _NOT_ATTRIBUTES):
        raise InputError(f"{_quote(text)}: .{escape_text(node.attr, _SHOWN)} cannot be used in an expression here")
    if isinstance(node, ast.Name) and node.id not in own:
        known = [*NAMES, *FUNCTIONS, *CONSTANTS]
        if node.id not in known:
            close = get_close_matches(node.id, known, 1)
            hint = f"; did you mean {close[0]}?" if close else "; help names lists those that there are"
            raise InputError(f"{_quote(text)}: there is no name {escape_text(node.id, _SHOWN)}{hint}")


def _quote(text: str) -> str:
    return f'"{escape_text(text, _SHOWN)}"'
