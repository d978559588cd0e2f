"""prctl(PR_SET_MM): where a program says that the parts of its address space are (kernel/sys.c).

Most of it is shown in /proc alone; START_BRK, BRK, START_DATA and END_DATA change what brk does next.
"""

from __future__ import annotations

from typing import Final

from vmalab.reason import (
    LAYOUT_ADDRESS,
    LAYOUT_FILE_NOT_PERMITTED,
    LAYOUT_LIMIT_DATA,
    LAYOUT_NOT_MAPPED,
    LAYOUT_NOT_PERMITTED,
    LAYOUT_OPTION,
    LAYOUT_ORDER,
    LAYOUT_SIZE,
    NOT_MODELLED,
    YES,
)
from vmalab.vma.space import Mm

START_CODE: Final = 1
END_CODE: Final = 2
START_DATA: Final = 3
END_DATA: Final = 4
START_STACK: Final = 5
START_BRK: Final = 6
BRK: Final = 7
ARG_START: Final = 8
ARG_END: Final = 9
ENV_START: Final = 10
ENV_END: Final = 11
AUXV: Final = 12
EXE_FILE: Final = 13
MAP: Final = 14
MAP_SIZE: Final = 15
OPTIONS: Final = {
    START_CODE: "PR_SET_MM_START_CODE",
    END_CODE: "PR_SET_MM_END_CODE",
    START_DATA: "PR_SET_MM_START_DATA",
    END_DATA: "PR_SET_MM_END_DATA",
    START_STACK: "PR_SET_MM_START_STACK",
    START_BRK: "PR_SET_MM_START_BRK",
    BRK: "PR_SET_MM_BRK",
    ARG_START: "PR_SET_MM_ARG_START",
    ARG_END: "PR_SET_MM_ARG_END",
    ENV_START: "PR_SET_MM_ENV_START",
    ENV_END: "PR_SET_MM_ENV_END",
    AUXV: "PR_SET_MM_AUXV",
    EXE_FILE: "PR_SET_MM_EXE_FILE",
    MAP: "PR_SET_MM_MAP",
    MAP_SIZE: "PR_SET_MM_MAP_SIZE",
}
ORDER: Final = (
    *(START_CODE, END_CODE, START_DATA, END_DATA, START_BRK, BRK, START_STACK),
    *(ARG_START, ARG_END, ENV_START, ENV_END),
)
"""The parts in the order of struct prctl_mm_map, in which a layout is a list of addresses."""
_ON_THE_STACK: Final = frozenset({START_STACK, ARG_START, ARG_END, ENV_START, ENV_END})
MAP_BYTES: Final = 104
"""The size of struct prctl_mm_map."""
MOST_OF_A_VECTOR: Final = 448
"""Bytes that the kernel keeps of the auxiliary vector (AT_VECTOR_SIZE)."""
NO_FILE: Final = 0xFFFFFFFF


def layout_of(mm: Mm) -> list[int]:
    """The parts of an address space in the order of ORDER."""
    return [
        *(mm.start_code, mm.end_code, mm.start_data, mm.end_data, mm.start_brk, mm.brk, mm.start_stack),
        *(mm.arg_start, mm.arg_end, mm.env_start, mm.env_end),
    ]


def take_layout(mm: Mm, layout: list[int]) -> None:
    """Have the parts where a layout says."""
    mm.start_code, mm.end_code, mm.start_data, mm.end_data = layout[0], layout[1], layout[2], layout[3]
    mm.start_brk, mm.brk, mm.start_stack = layout[4], layout[5], layout[6]
    mm.arg_start, mm.arg_end, mm.env_start, mm.env_end = layout[7], layout[8], layout[9], layout[10]


def validate_layout(mm: Mm, layout: list[int]) -> int:
    """Whether a layout makes sense: YES or a reason (validate_prctl_map_addr)."""
    for addr in layout:
        if not mm.settings.min_addr <= addr < mm.task_size:
            return LAYOUT_ADDRESS
    start_code, end_code, start_data, end_data, start_brk, brk, _, arg_start, arg_end, env_start, env_end = layout
    if start_code >= end_code or start_data > end_data or start_brk > brk:
        return LAYOUT_ORDER
    if arg_start > arg_end or env_start > env_end:
        return LAYOUT_ORDER
    return LAYOUT_LIMIT_DATA if (brk - start_brk) + (end_data - start_data) > mm.limits.data else YES


def set_layout(mm: Mm, layout: list[int], size: int, vector: int, vector_size: int, file: int) -> int:
    """PR_SET_MM_MAP with a good pointer, which needs no capability: YES or a reason (prctl_set_mm_map).

    size: what the caller takes the structure to have.  vector, vector_size, file: its last three fields.
    """
    if size != MAP_BYTES:
        return LAYOUT_SIZE
    refusal = validate_layout(mm, layout)
    if refusal != YES:
        return refusal
    if vector_size and (vector == 0 or vector_size > MOST_OF_A_VECTOR):
        return LAYOUT_SIZE
    if file != NO_FILE:
        limits = mm.limits
        return NOT_MODELLED if limits.sys_admin or limits.checkpoint_restore else LAYOUT_FILE_NOT_PERMITTED
    take_layout(mm, layout)
    return YES


def set_part(mm: Mm, option: int, addr: int) -> int:
    """One part of the layout: YES or a reason.  The executable and the auxiliary vector are not modelled."""
    if not mm.limits.sys_resource:
        return LAYOUT_NOT_PERMITTED
    if option in (EXE_FILE, AUXV):
        return NOT_MODELLED
    if not mm.settings.min_addr <= addr < mm.task_size:
        return LAYOUT_ADDRESS
    if option not in ORDER:
        return LAYOUT_OPTION
    layout = layout_of(mm)
    layout[ORDER.index(option)] = addr
    # A part that nobody has told of is taken to be in order.
    refusal = validate_layout(mm, [each or mm.settings.min_addr for each in layout])
    if refusal != YES:
        return refusal
    if option in _ON_THE_STACK and mm.find_vma(addr) is None:
        return LAYOUT_NOT_MAPPED
    take_layout(mm, layout)
    return YES
