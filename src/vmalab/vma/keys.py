"""The arrays of the range tree: native integers where compiled, lists where not.

A *key* stands for an unsigned 64-bit address and keeps its order.  Compiled, a key is a signed native integer, the
address less 2**63; interpreted, it is the address itself.  The arrays are changed in place where that is possible, so
each function that changes one returns the array to keep in its stead.

The two halves of this module say the same thing twice; nothing else in the core knows which of them runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

COMPILED: Final = not __file__.endswith(".py")

if COMPILED:
    from librt.vecs import append, extend, pop, vec
else:
    from bisect import bisect_left, bisect_right
    from operator import sub

if TYPE_CHECKING:
    from mypy_extensions import i64

    if COMPILED:
        Keys = vec[i64]
    else:
        Keys = list[int]

ADDRESS_END: Final = 1 << 64
"""One past the highest address."""

HUGE: Final = (1 << 63) - 1
"""Distances from here on are not told apart: distance() may answer HUGE for any of them."""

WORD: Final = (1 << 62) - 1
"""The largest integer that mypyc holds in a machine word; constants beyond it are objects, and slow."""

QUARTER: Final = -(1 << 62)
"""Minus a quarter of the space.  Taken twice it is the bias between addresses and keys, in constants of one word."""


def bad_address(addr: int) -> ValueError:
    """The error for an address outside the 64-bit space."""
    return ValueError(f"address {addr:#x} is outside the 64-bit space")


if COMPILED:
    HIGHEST: Final = (1 << 63) - 1

    LINE: Final = 8
    """So many keys lie in one line of the cache."""

    def lowest() -> i64:
        """The key of address 0."""
        half: i64 = QUARTER
        return half + half

    def to_key(addr: int) -> i64:
        """The key of an address.  Raises ValueError outside [0, 2**64)."""
        if 0 <= addr <= WORD:
            key: i64 = addr
            return key + QUARTER + QUARTER
        return large_to_key(addr)

    def large_to_key(addr: int) -> i64:
        """to_key() for the addresses that are not plain machine words."""
        if addr < 0 or addr >= ADDRESS_END:
            raise bad_address(addr)
        key: i64 = addr - (1 << 63)
        return key

    def to_address(key: i64) -> int:
        """The address of a key."""
        if key < 0:
            return key - QUARTER - QUARTER
        high: int = key
        return high + (1 << 63)

    def distance(low: i64, high: i64) -> i64:
        """high - low, or HUGE if that does not fit.  low must not be far above high: at most by one."""
        if high >= 0 and low < 0 and high + QUARTER + QUARTER >= low:
            return HUGE
        return high - low

    def no_keys() -> vec[i64]:
        """An empty array."""
        return vec[i64]()

    def one_key(key: i64) -> vec[i64]:
        """An array of one key."""
        return vec[i64]([key])

    def first_at_least(keys: vec[i64], key: i64) -> i64:
        """The first index whose key is at least this one, in a sorted array; its length if there is none."""
        low: i64 = 0
        size: i64 = len(keys)
        # Only one number depends on what is found, so that nothing need be guessed.
        while size > 1:
            half = size >> 1
            if keys[low + half - 1] < key:
                low += half
            size -= half
        return low + 1 if size == 1 and keys[low] < key else low

    def first_at_least_far(keys: vec[i64], key: i64) -> i64:
        """first_at_least() for an array that is not in the processor's cache.

        It asks for all its lines at once, by one key of each, where a bisection waits for one after the other.
        """
        low: i64 = 0
        size: i64 = len(keys)
        at: i64 = LINE - 1
        while at < size:
            if keys[at] < key:
                low = at + 1
            at += LINE
        at = low
        while at < size and keys[at] < key:
            at += 1
        return at

    def first_above(keys: vec[i64], key: i64) -> i64:
        """The first index whose key is greater than this one, in a sorted array; its length if there is none."""
        low: i64 = 0
        size: i64 = len(keys)
        while size > 1:
            half = size >> 1
            if keys[low + half - 1] <= key:
                low += half
            size -= half
        return low + 1 if size == 1 and keys[low] <= key else low

    def first_above_far(keys: vec[i64], key: i64) -> i64:
        """first_above() as first_at_least_far() does it: for arrays that are far from the processor, or long."""
        low: i64 = 0
        size: i64 = len(keys)
        at: i64 = LINE - 1
        while at < size:
            if keys[at] <= key:
                low = at + 1
            at += LINE
        at = low
        while at < size and keys[at] <= key:
            at += 1
        return at

    def insert_key(keys: vec[i64], at: i64, key: i64) -> vec[i64]:
        """The array with one key more, at this index."""
        size: i64 = len(keys)
        # Two at a time, and none of them read after it was written, so that each index is checked once.
        while at + 1 < size:
            first = keys[at]
            second = keys[at + 1]
            keys[at] = key
            keys[at + 1] = first
            key = second
            at += 2
        if at < size:
            first = keys[at]
            keys[at] = key
            key = first
        return append(keys, key)

    def delete_keys(keys: vec[i64], start: i64, stop: i64) -> vec[i64]:
        """The array without keys[start:stop]."""
        if stop == start + 1:
            return pop(keys, start)[0]
        size: i64 = len(keys)
        while stop < size:
            keys[start] = keys[stop]
            start += 1
            stop += 1
        while size > start:
            keys = pop(keys)[0]
            size -= 1
        return keys

    def slice_keys(keys: vec[i64], start: i64, stop: i64) -> vec[i64]:
        """A copy of keys[start:stop]."""
        return keys[start:stop]

    def copy_keys(keys: vec[i64], start: i64, stop: i64, room: i64) -> vec[i64]:
        """slice_keys() with room for so many keys in all, so that it need not be moved as it grows."""
        return extend(vec[i64](capacity=room), keys[start:stop])

    def join_keys(left: vec[i64], right: vec[i64]) -> vec[i64]:
        """The keys of both; right is left alone."""
        for key in right:
            left = append(left, key)
        return left

    def last_bound(bounds: vec[i64], size: i64, stop: i64) -> i64:
        """The last index below stop whose bound is at least size, or -1."""
        i: i64 = stop - 1
        while i >= 0:
            if bounds[i] >= size:
                return i
            i -= 1
        return -1

    def first_bound(bounds: vec[i64], size: i64, start: i64) -> i64:
        """The first index from start on whose bound is at least size, or -1."""
        count: i64 = len(bounds)
        while start < count:
            if bounds[start] >= size:
                return start
            start += 1
        return -1

    def largest(bounds: vec[i64]) -> i64:
        """The largest bound of an array that is not empty."""
        best: i64 = bounds[0]
        for bound in bounds:
            if bound > best:
                best = bound
        return best

    def last_gap(starts: vec[i64], lasts: vec[i64], size: i64, stop: i64) -> i64:
        """The last i < stop with room for size between entry i and the one before it, or -1."""
        i: i64 = stop - 1
        while i > 0:
            # A distance that does not fit is negative.
            gap = starts[i] - lasts[i - 1]
            if gap > size or gap < 0:
                return i
            i -= 1
        return -1

    def first_gap(starts: vec[i64], lasts: vec[i64], size: i64, start: i64, below: i64) -> i64:
        """The first i >= start with room for size before entry i, or -1; below is where that before entry 0 starts."""
        count: i64 = len(starts)
        if start == 0:
            if count > 0 and distance(below, starts[0]) >= size:
                return 0
            start = 1
        while start < count:
            # A distance that does not fit is negative.
            gap = starts[start] - lasts[start - 1]
            if gap > size or gap < 0:
                return start
            start += 1
        return -1

    def largest_gap(starts: vec[i64], lasts: vec[i64], below: i64) -> i64:
        """The most room before any of the entries; below as in first_gap()."""
        best: i64 = 0
        i: i64 = 0
        count: i64 = len(starts)
        while i < count:
            gap = distance(below, starts[i])
            if gap > best:
                best = gap
            i += 1
            if i < count:
                below = lasts[i - 1] + 1
        return best

else:
    HIGHEST: Final = (1 << 64) - 1

    def lowest() -> i64:
        """The key of address 0."""
        return 0

    def to_key(addr: int) -> i64:
        """The key of an address.  Raises ValueError outside [0, 2**64)."""
        if 0 <= addr <= HIGHEST:
            return addr
        raise bad_address(addr)

    def to_address(key: i64) -> int:
        """The address of a key."""
        return key

    def distance(low: i64, high: i64) -> i64:
        """high - low.  low must not be far above high: at most by one."""
        return high - low

    def no_keys() -> list[int]:
        """An empty array."""
        return []

    def one_key(key: i64) -> list[int]:
        """An array of one key."""
        return [key]

    first_at_least = bisect_left
    first_at_least_far = bisect_left
    first_above = bisect_right
    first_above_far = bisect_right

    def insert_key(keys: list[int], at: i64, key: i64) -> list[int]:
        """The array with one key more, at this index."""
        keys.insert(at, key)
        return keys

    def delete_keys(keys: list[int], start: i64, stop: i64) -> list[int]:
        """The array without keys[start:stop]."""
        del keys[start:stop]
        return keys

    def slice_keys(keys: list[int], start: i64, stop: i64) -> list[int]:
        """A copy of keys[start:stop]."""
        return keys[start:stop]

    def copy_keys(keys: list[int], start: i64, stop: i64, room: i64) -> list[int]:
        """slice_keys() with room for so many keys in all."""
        return keys[start:stop]

    def join_keys(left: list[int], right: list[int]) -> list[int]:
        """The keys of both; right is left alone."""
        left.extend(right)
        return left

    def last_bound(bounds: list[int], size: i64, stop: i64) -> i64:
        """The last index below stop whose bound is at least size, or -1."""
        for i in range(stop - 1, -1, -1):
            if bounds[i] >= size:
                return i
        return -1

    def first_bound(bounds: list[int], size: i64, start: i64) -> i64:
        """The first index from start on whose bound is at least size, or -1."""
        for i in range(start, len(bounds)):
            if bounds[i] >= size:
                return i
        return -1

    def largest(bounds: list[int]) -> i64:
        """The largest bound of an array that is not empty."""
        return max(bounds)

    def last_gap(starts: list[int], lasts: list[int], size: i64, stop: i64) -> i64:
        """The last i < stop with room for size between entry i and the one before it, or -1."""
        for i in range(stop - 1, 0, -1):
            if starts[i] - lasts[i - 1] > size:
                return i
        return -1

    def first_gap(starts: list[int], lasts: list[int], size: i64, start: i64, below: i64) -> i64:
        """The first i >= start with room for size before entry i, or -1; below is where that before entry 0 starts."""
        if start == 0:
            if starts and starts[0] - below >= size:
                return 0
            start = 1
        for i in range(start, len(starts)):
            if starts[i] - lasts[i - 1] > size:
                return i
        return -1

    def largest_gap(starts: list[int], lasts: list[int], below: i64) -> i64:
        """The most room before any of the entries; below as in first_gap()."""
        return max(map(sub, starts, [below - 1, *lasts]), default=1) - 1
