"""Large batches on a CPU, a slice at a time."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

_SLICE_NUMBERS = 4_500_000  # in the largest activation; as many in half precision

memory_is_kept = False  # `keep_freed_memory` of training/memory.py has been called: a training gains nothing by slices


def slice_length(model: nn.Module, x: Tensor, largest_activation: int) -> int:
    """How many images of the batch `x` to run at a time where that is faster and cannot be seen, else 0.

    Activations beyond the allocator's largest pooled block (32 MiB with glibc) are mapped from the kernel, zeroed and
    given back at every operation: a batch of 128 then runs at two thirds of the speed of eight batches of 16. So plain
    inference on a CPU goes slice by slice. So does a training, whose activations are given back at the end of every
    step: in halves a batch of 128 is 1.1 to 1.4 times as fast. Its gradients are those of the whole batch, but for
    rounding; dropout draws slice by slice. Whatever could see the slices gets the whole batch: hooks on the model's
    modules, batch norm, tracing, compiling and exporting.

    `largest_activation`: its numbers for one image. Slices are as even as can be.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor or x.device.type != 'cpu':
        return 0
    most = max(1, _SLICE_NUMBERS // largest_activation)
    if len(x) <= most or (torch.is_grad_enabled() and memory_is_kept) or _sees_slices(model):
        return 0
    return -(-len(x) // -(-len(x) // most))


def _sees_slices(model: nn.Module) -> bool:
    return any(has_hooks(module) or (isinstance(module, _BatchNorm) and module.training)
               for module in model.modules() if module is not model)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything watches a module's forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook())
