"""Host memory that goes back to the machine once it is free.

The C library keeps a pool for each of several threads.  A save copies gigabytes from threads that
come and go, and what they free stays scattered over the pools: the process grows from save to save
though nothing is lost (measured over 40 saves of 96 MiB: from 400 to 630 MiB; with one pool that is
trimmed after each save 350, within 1 MiB).
"""

import ctypes

M_ARENA_MAX = -8
"""As glibc's malloc.h has it."""


def use_one_pool() -> None:
    """Have all threads share one pool; call it before there are any.  Does nothing without glibc.

    Small pieces come from a store of each thread's own all the same, so that nobody waits.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Return what is free to the machine.  Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
