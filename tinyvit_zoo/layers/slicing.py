"""Inference on a CPU, a cache-sized slice of the batch at a time."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_SLICE_BYTES = 16 << 20


def slice_length(model: nn.Module, x: Tensor, bytes_per_image: int) -> int:
    """How many images of the batch `x` to run at a time where that is faster and cannot be seen, else 0.

    Activations beyond the allocator's largest pooled block (32 MiB with glibc) are mapped from the kernel, zeroed and
    given back at every operation: a batch of 128 then runs at two thirds of the speed of eight batches of 16. So plain
    inference on a CPU goes slice by slice. Whatever could see the slices gets the whole batch: training, hooks on the
    model's modules, tracing, compiling and exporting.

    `bytes_per_image`: the size of the largest activation, in float32. Slices are as even as can be.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
        return 0
    element_size = 2 if torch.is_autocast_enabled('cpu') else x.element_size()
    most = max(1, 4 * _SLICE_BYTES // (element_size * bytes_per_image))
    if torch.is_grad_enabled() or x.device.type != 'cpu' or len(x) <= most or _inner_hooks(model):
        return 0
    return -(-len(x) // -(-len(x) // most))


def _inner_hooks(model: nn.Module) -> bool:
    return any(has_hooks(module) for module in model.modules() if module is not model)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything watches a module's forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook())
