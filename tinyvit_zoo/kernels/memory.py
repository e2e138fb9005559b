"""Keep freed memory in the process: with glibc, activations are otherwise mapped and zeroed anew at every operation."""
from __future__ import annotations

import ctypes
import sys

import torch

from . import slicing

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(device: torch.device) -> None:
    """For a training on a CPU under Linux: 1.3 to 2 times as fast, for memory that is not given back meanwhile."""
    if device.type != 'cpu' or not sys.platform.startswith('linux'):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2 ** 31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)
    slicing.memory_is_kept = True
