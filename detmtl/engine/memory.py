"""Memory that is freed stays with the process."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc to reuse freed memory rather than give it back; returns whether it listened.

    A training step allocates and frees the same large tensors again and again. By default glibc maps
    each anew, and the kernel then clears it page by page, which on virtual machines can take as long as
    the arithmetic (`benchmarks/allocator.py` measures it). Other systems and allocators are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    wanted = (
        (M_MMAP_MAX, 0),
        (M_TRIM_THRESHOLD, LARGEST_INT),
        (M_TOP_PAD, 64 * 2**20),
        (M_ARENA_MAX, 1),  # the backward pass runs in a thread of its own
    )
    heard = [mallopt(option, value) == 1 for option, value in wanted]
    return all(heard)
