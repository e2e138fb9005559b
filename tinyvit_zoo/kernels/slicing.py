"""Large batches on a CPU, a slice at a time."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from .memory import freed_memory_is_kept

_SLICE_NUMBERS = 4_500_000  # in the largest activation; as many in half precision


def slice_length(model: nn.Module, x: Tensor, largest_activation: int) -> int:
    """How many images of the batch `x` to run at a time where that is faster and cannot be noticed, else 0.

    Activations beyond the allocator's largest pooled block (32 MiB with glibc) are mapped from the kernel, zeroed and
    given back at every operation: a batch of 128 then runs at two thirds of the speed of eight batches of 16. So plain
    inference on a CPU goes slice by slice. So does a training outside `keep_freed_memory`: in halves a batch of 128 is
    1.1 to 1.4 times as fast. Its gradients are those of the whole batch, but for rounding; dropout draws slice by
    slice. Hooks on the model's modules, batch norm, tracing, compiling and exporting get the whole batch.

    `largest_activation`: its numbers for one image. Slices are as even as can be.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor or x.device.type != 'cpu':
        return 0
    most = max(1, _SLICE_NUMBERS // largest_activation)
    if len(x) <= most or (torch.is_grad_enabled() and freed_memory_is_kept()) or _notices_slices(model):
        return 0
    return -(-len(x) // -(-len(x) // most))


def _notices_slices(model: nn.Module) -> bool:
    return _has_any_global_hook() or any(
        module._forward_hooks or module._forward_pre_hooks or (isinstance(module, _BatchNorm) and module.training)
        for module in model.modules() if module is not model)
