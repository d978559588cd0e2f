"""Memory policies."""

import errno

from tests.witness.ground import AT, HOLE, PAGE, SECRET_PAGES, Witness, call, mapped, unprivileged

POLICIES = (
    # -- policies
    Witness(
        "mbind: secret memory cannot be moved",
        errno.EIO,
        (*SECRET_PAGES, call("write", AT), call("mbind", AT, PAGE, 1, 0, 3)),
        pages=True,
    ),
    Witness(
        "mbind: secret memory that is not there",
        0,
        (*SECRET_PAGES, call("mbind", AT, PAGE, 1, 0, 3)),
        pages=True,
    ),
    Witness("mbind: a hole", errno.EFAULT, (*HOLE, call("mbind", AT, 4 * PAGE, 2, 1, 0))),
    Witness("mbind: a hole is fine for the default", 0, (*HOLE, call("mbind", AT, 4 * PAGE, 0, 0, 0))),
    Witness("mbind: not aligned", errno.EINVAL, (mapped(), call("mbind", AT + 1, PAGE, 2, 1, 0))),
    Witness("mbind: unknown mode", errno.EINVAL, (mapped(), call("mbind", AT, PAGE, 50, 1, 0))),
    Witness("mbind: unknown flags", errno.EINVAL, (mapped(), call("mbind", AT, PAGE, 2, 1, 1 << 6))),
    Witness(
        "mbind: a page on another node",
        errno.EIO,
        (mapped(), call("write", AT), call("mbind", AT, PAGE, 4, 0, 1)),
        pages=True,
    ),
    Witness(
        "mbind: a page on another node, and a hole behind it",
        errno.EFAULT,
        (*HOLE, call("write", AT), call("mbind", AT, 4 * PAGE, 4, 0, 1)),
        pages=True,
    ),
    Witness(
        "mbind: a page on another node, and a hole further on",
        errno.EIO,
        (mapped(), mapped(AT + 4 * PAGE, prot=1), call("write", AT), call("mbind", AT, 10 * PAGE, 4, 0, 1)),
        pages=True,
    ),
    Witness(
        "mbind: a page that may move", 0, (mapped(), call("write", AT), call("mbind", AT, PAGE, 4, 0, 2)), pages=True
    ),
    Witness("mbind: MOVE_ALL", 0, (mapped(), call("mbind", AT, PAGE, 2, 1, 4))),
    Witness(
        "mbind: MOVE_ALL without CAP_SYS_NICE",
        errno.EPERM,
        unprivileged(mapped(), call("mbind", AT + 1, PAGE, 2, 1, 4)),
    ),
    Witness("mbind: no nodes", errno.EINVAL, (mapped(), call("mbind", AT, PAGE, 2, 0, 0))),
    Witness("set_mempolicy: no nodes", errno.EINVAL, (call("set_mempolicy", 2, 0),)),
    Witness(
        "set_mempolicy_home_node: no policy", errno.ENOENT, (mapped(), call("set_mempolicy_home_node", AT, PAGE, 0, 0))
    ),
    Witness(
        "set_mempolicy_home_node: no such node",
        errno.EINVAL,
        (mapped(), call("set_mempolicy_home_node", AT, PAGE, 9, 0)),
    ),
    Witness(
        "set_mempolicy_home_node: of another mode",
        errno.EOPNOTSUPP,
        (mapped(), call("mbind", AT, PAGE, 3, 1, 0), call("set_mempolicy_home_node", AT, PAGE, 0, 0)),
    ),
    Witness("get_mempolicy: nothing is mapped", errno.EFAULT, (call("get_mempolicy", AT, 2),)),
    Witness("get_mempolicy: an address for nothing", errno.EINVAL, (call("get_mempolicy", AT, 0),)),
    Witness("get_mempolicy: no next node", errno.EINVAL, (call("get_mempolicy", 0, 1),)),
    Witness("get_mempolicy: the next node", 0, (call("set_mempolicy", 3, 1), call("get_mempolicy", 0, 1))),
    Witness("get_mempolicy: the node of a page", 0, (mapped(), call("get_mempolicy", AT, 3))),
    Witness(
        "get_mempolicy: the node of a page that is only written to",
        0,
        (mapped(prot=2), call("write", AT), call("get_mempolicy", AT, 3)),
        pages=True,
    ),
    Witness("get_mempolicy: no page may be there", errno.EFAULT, (mapped(prot=0), call("get_mempolicy", AT, 3))),
)
