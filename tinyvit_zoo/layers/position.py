"""Position tables: the fixed sine table, and how any table follows the image size."""
from __future__ import annotations

from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def sine_table(length: int, dim: int, device: Any = None, dtype: Any = None) -> Tensor:
    """[1, length, dim]: position p, channel i holds sin (even i) or cos (odd i) of p / 10000 ** (2 (i // 2) / dim).

    One sequence table: the tokens of an image are numbered row by row. Made anew for another length, not interpolated.
    """
    position = torch.arange(length, device=device, dtype=torch.float64)[:, None]
    channel = torch.arange(dim, device=device, dtype=torch.float64)
    angle = position / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())[None].to(dtype or torch.get_default_dtype())


def is_sine_table(table: Tensor) -> bool:
    """Whether a table is the sine table of its size (to half precision), and not one that was learned."""
    if table.is_meta:
        return True
    expected = sine_table(table.shape[1], table.shape[2], device=table.device, dtype=torch.float32)
    return torch.allclose(table.float(), expected, rtol=0, atol=1e-2)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """A table for another grid of tokens: computed anew if a sine table, else interpolated (bicubic, antialiased).

    Prefix tokens keep their rows.
    """
    if old == new:
        return table
    if is_sine_table(table):
        return sine_table(new[0] * new[1] + num_prefix_tokens, table.shape[2], device=table.device, dtype=table.dtype)
    return resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=num_prefix_tokens)
