"""A process of the running kernel that does what it is told, each thing in a thread: `python -m ... DESCRIPTOR`.

A line of JSON that comes in on the socket is [number, what, arguments]; what goes out is [number, result].
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
import threading
import time
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
USERFAULTFD = 323


def system_call(number: int, *arguments: int) -> int:
    """The result of a system call, or minus an errno."""
    ctypes.set_errno(0)
    result: int = LIBC.syscall(ctypes.c_long(number), *[ctypes.c_ulong(each % (1 << 64)) for each in arguments])
    return -ctypes.get_errno() if result == -1 else result


def perform(what: str, arguments: list[Any], made: list[int]) -> Any:
    """Do one thing; its result."""
    if what == "read":
        found = ctypes.create_string_buffer(arguments[1])
        LIBC.memcpy(found, ctypes.c_void_p(arguments[0]), ctypes.c_size_t(arguments[1]))
        return found.raw.hex()
    if what == "write":
        data = bytes.fromhex(arguments[1])
        LIBC.memcpy(ctypes.c_void_p(arguments[0]), data, ctypes.c_size_t(len(data)))
        return 0
    if what == "ioctl":
        buffer = bytearray(struct.pack(f"{len(arguments) - 1}Q", *arguments[1:]))
        try:
            fcntl.ioctl(made[0], arguments[0], buffer)
        except OSError as error:
            return -(error.errno or 0)
        return 0
    if what == "close":
        os.close(made.pop())
        return 0
    return system_call(*arguments)


def main() -> None:
    """Until the socket is closed."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    made: list[int] = []
    parent = os.getpid()

    def work(number: int, what: str, arguments: list[Any]) -> None:
        result = perform(what, arguments, made)
        channel.sendall(json.dumps([number, result]).encode() + b"\n")

    for line in channel.makefile("rb"):
        number, what, arguments = json.loads(line)
        if what == "userfaultfd":
            made.append(system_call(USERFAULTFD, os.O_NONBLOCK))
            socket.send_fds(channel, [b"\n"], made)
        elif what == "fork":
            # Not in a thread: the child goes on where this one is, and ends with it.
            if os.fork() == 0:
                while os.getppid() == parent:
                    time.sleep(0.05)
                os._exit(0)
            channel.sendall(json.dumps([number, 0]).encode() + b"\n")
        else:
            threading.Thread(target=work, args=(number, what, arguments), daemon=True).start()
    os._exit(0)


if __name__ == "__main__":
    main()
