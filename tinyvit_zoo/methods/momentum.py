"""Teachers that follow their student: averages of its weights, which no gradient reaches."""
from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar('ModuleT', bound=nn.Module)


def average_(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an averaged copy of a model towards it. Buffers are copied."""
    with torch.no_grad():
        ours: list[Tensor] = list(average.parameters())
        torch._foreach_lerp_(ours, [p.detach() for p in model.parameters()], 1 - decay)
        for buffer, source in zip(average.buffers(), model.buffers(), strict=True):
            buffer.copy_(source)


def teacher_of(student: ModuleT) -> ModuleT:
    """A copy without gradients, dropout and drop path."""
    return copy.deepcopy(student).requires_grad_(False).eval()


def momentum_at(progress: float, start: float) -> float:
    """Return a teacher's momentum: half a cosine from `start` to 1, as the training goes from 0 to 1."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress))
