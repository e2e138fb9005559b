"""Keep freed memory in the process, or run large batches on a CPU a slice at a time.

Activations beyond the allocator's largest pooled block (32 MiB with glibc) are otherwise mapped from the kernel, zeroed
and given back at every operation: a batch of 128 then runs at two thirds of the speed of eight batches of 16.
"""
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_SLICE_NUMBERS = 4_500_000  # in the largest activation; as many in half precision
_kept = ContextVar('_kept', default=False)


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory: training on a CPU under Linux is 1.3 to 2 times as fast. It is released at the end."""
    mallopt = None
    if device.type == 'cpu' and sys.platform.startswith('linux'):
        mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # other C libraries have none
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2 ** 31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)
    token = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(token)
        if not _kept.get():  # the values that glibc's own thresholds reach; once set, they no longer adapt
            for option, value in ((_M_MMAP_MAX, 1 << 16), (_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 64 << 20),
                                  (_M_TOP_PAD, 128 << 10)):
                mallopt(option, value)


def slice_length(model: nn.Module, x: Tensor, largest_activation: int) -> int:
    """Return the number of images of `x` to run at a time, in even slices; 0: all. `largest_activation`: of an image.

    For inference on a CPU, and training outside `keep_freed_memory`: in halves a batch of 128 is 1.1 to 1.4 times as
    fast. Gradients are equal up to rounding; dropout draws slice by slice. With hooks on the model's modules, what
    changes with each training pass (batch and spectral norm), tracing, compiling and exporting the batch stays whole.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor or x.device.type != 'cpu':
        return 0
    most = max(1, _SLICE_NUMBERS // largest_activation)
    if len(x) <= most or (torch.is_grad_enabled() and _kept.get()) or _has_any_global_hook() or any(
            map(_sees_whole_batch, (module for module in model.modules() if module is not model))):
        return 0
    return -(-len(x) // -(-len(x) // most))


def _sees_whole_batch(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or (module.training and (isinstance(module, _BatchNorm) or 'parametrizations' in module._modules))
