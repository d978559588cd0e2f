"""What searches for room remember: never more than is true, and enough to be of use."""

import random

import pytest

from vmalab.vma.keys import HUGE, delete_keys, insert_key, to_address, to_key
from vmalab.vma.maple import MapleTree
from vmalab.vma.maple_ceilings import MOST, Ceilings

PAGE = 4096
END = 1 << 64
TOP = 1000 * PAGE


def full(count: int) -> MapleTree[int]:
    """Entries of a page from 0 on, with nothing between them."""
    tree: MapleTree[int] = MapleTree()
    for at in range(count):
        assert tree.insert(at * PAGE, (at + 1) * PAGE, at)
    return tree


def start_of_search(tree: MapleTree[int], pages: int, high: int) -> int:
    """The first address that a search for so many pages below high does not look at."""
    return to_address(tree._ceilings.below(pages * PAGE, to_key(high - 1))) + 1


def test_a_search_starts_where_the_last_one_ended() -> None:
    tree = full(1000)
    assert start_of_search(tree, 1, TOP) == TOP
    tree.erase(10 * PAGE, 12 * PAGE)
    assert tree.highest_gap(2 * PAGE, 0, TOP) == 10 * PAGE
    assert [start_of_search(tree, pages, TOP) for pages in (1, 2, 3, 500)] == [TOP] + [12 * PAGE] * 3
    assert tree.highest_gap(PAGE, 0, TOP) == 11 * PAGE
    assert start_of_search(tree, 1, TOP) == 12 * PAGE
    tree.validate()


def test_room_that_appears_above_is_found() -> None:
    tree = full(1000)
    tree.erase(10 * PAGE, 13 * PAGE)
    assert tree.highest_gap(PAGE, 0, TOP) == 12 * PAGE
    tree.erase(900 * PAGE, 901 * PAGE)
    tree.validate()
    assert [start_of_search(tree, pages, TOP) for pages in (1, 2)] == [901 * PAGE, 13 * PAGE]
    assert tree.highest_gap(PAGE, 0, TOP) == 900 * PAGE
    assert tree.highest_gap(2 * PAGE, 0, TOP) == 11 * PAGE
    tree.set_range(899 * PAGE, 899 * PAGE, 899 * PAGE + 1)
    tree.validate()
    assert tree.highest_gap(PAGE + 1, 0, TOP) == 900 * PAGE - 1
    tree.set_range(950 * PAGE, 951 * PAGE - 1, 951 * PAGE)
    tree.validate()
    assert tree.highest_gap(PAGE - 1, 0, TOP) == 950 * PAGE


def test_room_at_the_end() -> None:
    """Nothing lies above the last entry: what it leaves is room as well."""
    tree = full(10)
    assert tree.highest_gap(PAGE, 0, 10 * PAGE) == -1
    tree.erase(9 * PAGE, 10 * PAGE)
    assert tree.highest_gap(PAGE, 0, 10 * PAGE) == 9 * PAGE
    assert tree.insert(9 * PAGE, 10 * PAGE, 9)
    tree.erase(3 * PAGE, 4 * PAGE)
    assert tree.highest_gap(PAGE, 0, 10 * PAGE) == 3 * PAGE
    tree.set_range(9 * PAGE, 9 * PAGE, 10 * PAGE - 1)
    tree.validate()
    assert tree.highest_gap(PAGE, 0, 10 * PAGE) == 3 * PAGE
    tree.set_range(9 * PAGE, 9 * PAGE, 9 * PAGE + 1)
    assert tree.highest_gap(PAGE - 1, 0, 10 * PAGE) == 9 * PAGE + 1
    tree.clear()
    tree.validate()
    assert tree.highest_gap(PAGE, 0, 10 * PAGE) == 9 * PAGE


def test_searches_from_elsewhere() -> None:
    """What lies above the end of a search is not known by it; what lies above all searches is not known at all."""
    tree = full(100)
    for at in (10, 50, 90):
        tree.erase(at * PAGE, (at + 1) * PAGE)
    assert tree.highest_gap(PAGE, 0, 80 * PAGE) == 50 * PAGE
    assert tree.highest_gap(PAGE, 0, 100 * PAGE) == 90 * PAGE
    assert tree.highest_gap(PAGE, 0, 40 * PAGE) == 10 * PAGE
    assert start_of_search(tree, 1, 100 * PAGE) == 91 * PAGE
    assert tree.highest_gap(PAGE, 51 * PAGE, 90 * PAGE) == -1
    assert tree.highest_gap(PAGE, 95 * PAGE, 100 * PAGE) == -1
    assert tree.highest_gap(PAGE, 0, END) == END - PAGE
    tree.validate()


def test_large_rooms_are_not_told_apart() -> None:
    tree = full(200)
    tree.erase(10 * PAGE, (10 + 2 * MOST) * PAGE)
    tree.erase(150 * PAGE, (150 + MOST) * PAGE)
    assert tree.highest_gap((MOST + 1) * PAGE, 0, 200 * PAGE) == (9 + MOST) * PAGE
    assert tree.highest_gap(MOST * PAGE, 0, 200 * PAGE) == 150 * PAGE
    assert tree.highest_gap((MOST + 1) * PAGE, 0, 200 * PAGE) == (9 + MOST) * PAGE
    tree.validate()


@pytest.mark.parametrize("seed", range(6))
def test_at_random(seed: int) -> None:
    """Searches give what a look at all gaps gives, also for sizes that are no whole pages."""
    dice = random.Random(seed)
    tree: MapleTree[int] = MapleTree()
    high = dice.choice((TOP, END, TOP // 2))
    for step in range(400):
        pages = dice.randint(1, dice.choice((4, 40)))
        size = pages * PAGE - dice.choice((0, 0, 0, 1, PAGE - 1))
        fits = [end for start, end in tree.gaps(0, high) if end - start >= size]
        found = tree.highest_gap(size, 0, high)
        assert found == (fits[-1] - size if fits else -1)
        op = dice.random()
        if found >= 0 and op < 0.6:
            assert tree.insert(found, found + size, step)
        elif tree.count:
            start, end, _ = dice.choice(tree.ranges())
            if op < 0.85:
                tree.erase(start, end)
            elif op < 0.95:
                tree.set_range(start, start + (end - start) // 3, end - (end - start) // 3)
            else:
                tree.store(start, start + (end - start + 1) // 2, step)
        if op > 0.99:
            high = dice.choice((TOP, END, TOP // 2))
        tree.validate()


def test_faults() -> None:
    ceilings = Ceilings()
    assert not ceilings.known()
    ceilings.grew(HUGE, to_key(TOP))
    assert ceilings.below(PAGE, to_key(TOP)) == to_key(TOP)
    assert ceilings.fault([(0, PAGE), (3 * PAGE, 5 * PAGE), (TOP + PAGE, END)]) == ""
    ceilings.found(2 * PAGE, to_key(TOP), to_key(4 * PAGE - 1))
    assert ceilings.fault([(3 * PAGE, 5 * PAGE)]) == "[0x3000, 0x5000) lies above the ceiling of 2 pages"
    ceilings._ceilings = insert_key(delete_keys(ceilings._ceilings, 1, 2), 1, to_key(0))
    assert ceilings.fault([]) == "the ceiling of 2 pages is above that of fewer"
