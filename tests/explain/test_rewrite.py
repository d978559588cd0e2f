"""Rules that replace calls: what they mean, and that everything else is refused in one line."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmalab import flags
from vmalab.errors import InputError
from vmalab.explain.rewrite import ARGUMENTS, Rule, parse_drop, parse_rule
from vmalab.trace.check import ARGUMENTS as COUNTS
from vmalab.trace.show import argument_kinds

ANONYMOUS = flags.MAP_PRIVATE | flags.MAP_ANONYMOUS
MMAP = (0, 8192, 3, ANONYMOUS | flags.MAP_STACK, 0xFFFFFFFF, 0)


def test_the_names_of_the_arguments_are_as_many_as_the_call_takes() -> None:
    for name, arguments in ARGUMENTS.items():
        assert len(arguments) == COUNTS[name]
        assert len(argument_kinds(name)) in (0, len(arguments))


@pytest.mark.parametrize(
    ("pattern", "args", "fits"),
    [
        ("mprotect", (4096, 8192, 1), True),
        ("mprotect()", (4096, 8192, 1), True),
        ("mprotect(PROT_NONE)", (4096, 8192, 0), True),
        ("mprotect(NONE)", (4096, 8192, 0), True),
        ("mprotect(PROT_NONE)", (4096, 8192, 1), False),
        ("mprotect(PROT_READ)", (4096, 8192, 3), False),
        ("mprotect(PROT_READ|PROT_WRITE)", (4096, 8192, 3), True),
        ("mprotect(READ | WRITE)", (4096, 8192, 3), True),
        ("mprotect(!PROT_NONE)", (4096, 8192, 3), True),
        ("mprotect(prot=0, length=8K)", (4096, 8192, 0), True),
        ("mprotect(length>=8193)", (4096, 8192, 0), False),
        ("mprotect(length<8K)", (4096, 8192, 0), False),
        ("mprotect(length<=0x2000)", (4096, 8192, 0), True),
        ("mprotect(length!=8192)", (4096, 8192, 0), False),
        ("mprotect(length > 4096, length < 1M)", (4096, 8192, 0), True),
        ("mmap(MAP_STACK)", MMAP, True),
        ("mmap(STACK|ANONYMOUS, PRIVATE)", MMAP, True),
        ("mmap(MAP_SHARED)", MMAP, False),
        ("mmap(!MAP_SHARED, !MAP_NORESERVE)", MMAP, True),
        ("mmap(!MAP_STACK)", MMAP, False),
        ("mmap(flags=MAP_PRIVATE|MAP_ANONYMOUS)", MMAP, False),
        ("mmap(flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_STACK, addr=0)", MMAP, True),
        ("madvise(DONTFORK)", (0, 0, flags.MADV_DONTFORK), True),
        ("madvise(MADV_DONTFORK)", (0, 0, 7 << 32 | flags.MADV_DONTFORK), True),
        ("madvise(NORMAL)", (0, 0, flags.MADV_DONTFORK), False),
        ("prctl(PR_SET_VMA)", (flags.PR_SET_VMA, 0, 0, 0, 0), True),
        ("munlockall", (), True),
    ],
)
def test_patterns(pattern: str, args: tuple[int, ...], fits: bool) -> None:
    name = re.split(r"\W", pattern)[0]
    rule = parse_rule(f"{pattern} -> {name}")
    assert rule.fits(name, args) == fits
    assert not rule.fits("another", args)
    assert rule.apply(args) == (name, args)


@pytest.mark.parametrize(
    ("replacement", "name", "args", "made"),
    [
        ("mprotect -> madvise(GUARD_INSTALL)", "mprotect", (4096, 8192, 0), ("madvise", (4096, 8192, 102))),
        ("mprotect -> mprotect(READ|EXEC)", "mprotect", (4096, 8192, 0), ("mprotect", (4096, 8192, 5))),
        ("mprotect -> mprotect(length=64K)", "mprotect", (4096, 8192, 0), ("mprotect", (4096, 65536, 0))),
        ("madvise -> munmap", "madvise", (4096, 8192, 4), ("munmap", (4096, 8192))),
        ("mlock -> mlock2(flags=ONFAULT)", "mlock", (4096, 8192), ("mlock2", (4096, 8192, 1))),
        ("mlock -> mlock2(+MLOCK_ONFAULT)", "mlock", (4096, 8192), ("mlock2", (4096, 8192, 1))),
        ("mlock2 -> mlock", "mlock2", (4096, 8192, 1), ("mlock", (4096, 8192))),
        ("mmap -> mmap(PROT_NONE, +NORESERVE, -STACK)", "mmap", MMAP, ("mmap", (0, 8192, 0, 0x4022, 0xFFFFFFFF, 0))),
        ("mmap -> mmap(+MAP_SHARED)", "mmap", MMAP, ("mmap", (0, 8192, 3, 0x20021, 0xFFFFFFFF, 0))),
        (
            "munmap -> mmap(PROT_NONE, flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED)",
            "munmap",
            (4096, 8192),
            ("mmap", (4096, 8192, 0, 0x32, (1 << 64) - 1, 0)),
        ),
    ],
)
def test_replacements(replacement: str, name: str, args: tuple[int, ...], made: tuple[str, tuple[int, ...]]) -> None:
    rule = parse_rule(replacement)
    assert rule.fits(name, args)
    assert rule.apply(args) == made
    assert not rule.drops()


def test_dropping() -> None:
    rule = parse_drop("madvise:DONTFORK, length>=4K")
    assert rule.drops()
    assert rule.fits("madvise", (4096, 4096, flags.MADV_DONTFORK))
    assert not rule.fits("madvise", (4096, 4095, flags.MADV_DONTFORK))
    assert rule.apply((4096, 4096, flags.MADV_DONTFORK)) is None
    assert parse_drop("munlockall").fits("munlockall", ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mprotect", "a rule is CALL"),
        ("a -> b -> c", "a rule is CALL"),
        ("mprotect(( -> nothing", "is no call"),
        ("-> nothing", "is no call"),
        ("open -> nothing", "there is no rule for open; there is for mmap"),
        ("mprotect(,) -> nothing", "an empty term"),
        ("mprotect(4096) -> nothing", "a number needs the name of its argument"),
        ("mprotect(DONTFORK) -> nothing", "'DONTFORK' is no flag of mprotect"),
        ("mprotect(PROT_NONE|DONTFORK) -> nothing", "'DONTFORK' is no value of prot of mprotect"),
        ("mprotect(size=1) -> nothing", "mprotect has no argument size; it has: addr, length, prot"),
        ("mprotect(length=many) -> nothing", "'many' is no value of length"),
        ("mprotect(length=99999999T) -> nothing", "more than 64 bits"),
        ("mmap(!MAP_STACK|MAP_FIXED) -> mmap", "write !MAP_STACK, !MAP_FIXED"),
        ("mmap -> nothing", "the program goes on with the address that mmap gives"),
        ("mmap -> munmap", "mmap gives an address: it can be replaced by mmap only"),
        ("munmap -> mremap", "mremap gives an address"),
        ("munmap -> mmap(PROT_NONE, flags=MAP_PRIVATE)", "needs flags=MAP_FIXED"),
        ("munmap -> mprotect", "munmap has no prot for mprotect to take over: give prot=..."),
        ("mmap -> mmap(MAP_STACK)", "write +MAP_STACK or -MAP_STACK to set or clear a flag, or flags=..."),
        ("mprotect -> mprotect(length<4)", "a replacement sets an argument with ="),
        ("mprotect(\x1b[31m) -> nothing", r"\x1b"),
    ],
)
def test_what_is_no_rule(text: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_rule(text)
    assert said in str(raised.value)
    assert str(raised.value).isprintable()


WORDS = "mprotect mmap madvise munmap -> nothing ( ) , | ! + - = < PROT_NONE FIXED length 4K"


def parsed(parse: Callable[[str], Rule], text: str) -> Rule | None:
    """The rule, or None if it is refused, in one line."""
    try:
        return parse(text)
    except InputError as error:
        refusal = str(error)
    assert refusal.isprintable()
    return None


@given(st.lists(st.sampled_from(WORDS.split())))
def test_any_words_are_a_rule_or_refused(words: list[str]) -> None:
    rule = parsed(parse_rule, " ".join(words))
    made = rule.apply((0,) * len(ARGUMENTS[rule.name])) if rule is not None else None
    assert made is None or len(made[1]) == len(ARGUMENTS[made[0]])


@given(st.text())
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    parsed(parse_rule, text)
    parsed(parse_drop, text)
