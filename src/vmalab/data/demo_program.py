"""What the demo records: an ordinary Python program that also splits a buffer into many VMAs."""

import decimal
import json
import mmap
import sqlite3
import subprocess
import sys
import threading

PAGE = mmap.PAGESIZE


def work() -> None:
    """What each thread does."""
    database = sqlite3.connect(":memory:")
    database.execute("create table t(a, b)")
    database.executemany("insert into t values(?, ?)", [(i, json.dumps({"i": i})) for i in range(2000)])


def buffers() -> mmap.mmap:
    """A pool of 64 buffers of one page, every second one kept from children and written to first."""
    pool = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for i in range(0, 64, 2):
        pool.madvise(mmap.MADV_DONTFORK, i * PAGE, PAGE)
        pool[i * PAGE] = 1
    for i in range(0, 32, 2):
        pool.madvise(mmap.MADV_DOFORK, i * PAGE, PAGE)
    return pool


def main() -> mmap.mmap:
    """Threads, buffers, and a child; the buffers stay mapped to the end."""
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool = buffers()
    subprocess.run([sys.executable, "-S", "-c", "pass"], check=True)
    print("the demo program has run:", decimal.Decimal(pool[0]) == 1, flush=True)
    return pool


POOL = main()
