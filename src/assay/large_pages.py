"""Memory in pages of 2 MB, for work that reads rows of large matrices at random.

1. A processor remembers where some two thousand pages are. Rows taken at random from a matrix of 40 MB miss it most of the
   time when pages have 4 kB, and nearly never when they have 2 MB.
2. Linux gives large pages to memory that asks for them (`madvise`). glibc takes large tensors from mappings of their own and
   gives them back when they are freed, page by page. `ask` makes it take them from its heap, in steps of `STEP`, keep what is
   freed, and asks for large pages there; `ask` again, when the heap may have grown. `give_back` undoes it.
3. Elsewhere than on Linux with glibc nothing happens. Numbers are the same everywhere.
"""

import ctypes
import platform
import sys
from functools import cache
from pathlib import Path

STEP = 1 << 30  # bytes by which the heap grows: reserved, and used only where touched
NEVER = (1 << 31) - 1
MMAP_MOST = 1 << 25  # where glibc's own adjustment ends
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of mallopt
ADVISE_LARGE = 14  # MADV_HUGEPAGE
PAGE = 4096


class _Heap:
    """glibc's heap: where it begins, and how far of it was asked for."""

    def __init__(self, libc: ctypes.CDLL, begin: int) -> None:
        self.libc, self.begin, self.end = libc, begin, begin

    def ask(self) -> None:
        """For large pages in what is new."""
        end = self.libc.sbrk(0) // PAGE * PAGE
        if end != self.end:
            self.libc.madvise(self.begin, max(end - self.begin, 0), ADVISE_LARGE)
            self.end = end


def ask() -> bool:
    """Take large tensors of this process from large pages from now on; whether that can be."""
    heap = _heap()
    if heap is None:
        return False
    if heap.end == heap.begin:
        for name, value in ((MMAP_THRESHOLD, NEVER), (TRIM_THRESHOLD, NEVER), (TOP_PAD, STEP)):
            heap.libc.mallopt(name, value)
        heap.libc.free(room := heap.libc.malloc(STEP))
        if room is None:  # a limit on addresses: growing in large steps would fail where small ones do not
            give_back()
            return False
    heap.ask()
    return True


def give_back() -> None:
    """Memory that is free goes back to the system; from now on glibc does as it would by itself."""
    heap = _heap()
    if heap is not None:
        for name, value in ((MMAP_THRESHOLD, MMAP_MOST), (TRIM_THRESHOLD, 2 * MMAP_MOST), (TOP_PAD, 0)):
            heap.libc.mallopt(name, value)
        heap.libc.malloc_trim(0)
        heap.end = heap.begin


@cache
def _heap() -> _Heap | None:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_size_t, [ctypes.c_ssize_t]
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    try:
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]")]
    except OSError:
        return None
    return _Heap(libc, int(lines[0].split("-")[0], 16)) if lines else None
