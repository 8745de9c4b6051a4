from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Each thread frees a block of 9 MB, by which glibc's own thresholds would grow, then four of 4 MB;
# said is what stays resident while the threads live on.
_PROGRAM = r"""
import ctypes, re, sys, threading
from amdim_serving.memory import bound_free_memory

if sys.argv[1] == "bound":
    assert bound_free_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def resident_mb():
    return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024

def touch(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

def work():
    libc.free(touch(9 << 20))
    for block in [touch(4 << 20) for _ in range(4)]:
        libc.free(block)
    done.wait()
    done.wait()

before = resident_mb()
done = threading.Barrier(5)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
done.wait()
print(resident_mb() - before)
done.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_threads_that_once_held_much_keep_little() -> None:
    kept = {
        how: float(
            subprocess.run(
                [sys.executable, "-c", _PROGRAM, how], check=True, capture_output=True, text=True
            ).stdout
        )
        for how in ("bound", "free")
    }
    assert kept["bound"] < 8 < 30 < kept["free"]
