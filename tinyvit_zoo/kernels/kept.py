"""Constant tensors, such as masks and orders of tokens, made once for each size, type and device."""
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Optional

import torch
from torch import Tensor


@lru_cache(maxsize=128)
def _made(make: Callable[..., Tensor], sizes: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return make(*sizes, dtype, device)


@torch.compiler.assume_constant_result
def _constant(make: Callable[..., Tensor], sizes: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return _made(make, sizes, dtype, device)


def kept(make: Callable[..., Tensor], like: Tensor, *sizes: Any, constant: bool = False) -> Optional[Tensor]:
    """`make(*sizes, dtype, device)` of the type and device of `like`, made once; None where it cannot be kept.

    With `constant` it also enters a compiled graph as a constant.
    """
    if constant and torch.compiler.is_dynamo_compiling():
        return _constant(make, sizes, like.dtype, like.device)
    if not torch.compiler.is_compiling() and type(like) is Tensor:
        return _made(make, sizes, like.dtype, like.device)
    return None
