"""Position tables: fixed sine tables, and resizing to other image sizes."""
from typing import Any, Tuple

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import register_notrace_function
from torch import Tensor

from ..errors import ZooError


def sine_table(length: int, dim: int, device: Any = None, dtype: Any = None) -> Tensor:
    """Return [1, length, dim]: sin (even channels i) or cos (odd) of position / 10000 ** (2 (i // 2) / dim)."""
    position = torch.arange(length, device=device, dtype=torch.float64)[:, None]
    channel = torch.arange(dim, device=device, dtype=torch.float64)
    angle = position / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())[None].to(dtype or torch.get_default_dtype())


def sincos2d_table(grid: tuple[int, int], dim: int, num_prefix_tokens: int = 0, row_first: bool = False,
                   device: Any = None, dtype: Any = None) -> Tensor:
    """Return [1, prefix + N, dim]: half of the channels encodes the column, half the row, each as [sin, cos].

    The column comes first, as in MAE, or the row, as in MoCo-v3. Frequencies are 10000 ** (-i / (dim / 4)). The rows of
    prefix tokens are zero. Values are rounded to single precision, as in the authors' files.
    """
    if dim % 4:
        raise ZooError(f'2D sine-cosine positions need a width that is a multiple of 4, not {dim}.')
    frequency = 10000. ** (-torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim // 4))
    rows, cols = (torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequency for length in grid)
    rows = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, grid[1], -1)  # [height, width, dim / 2]
    cols = torch.cat([cols.sin(), cols.cos()], dim=1)[None].expand(grid[0], -1, -1)
    table = torch.cat([rows, cols] if row_first else [cols, rows], dim=2).flatten(0, 1)
    table = torch.cat([table.new_zeros(num_prefix_tokens, dim), table])
    return table[None].float().to(dtype or torch.get_default_dtype())


def is_sine_table(table: Tensor) -> bool:
    """Return whether a table is the sine table of its size, to half precision."""
    if table.is_meta:
        return True
    expected = sine_table(table.shape[1], table.shape[2], device=table.device, dtype=torch.float32)
    return torch.allclose(table.float(), expected, rtol=0, atol=1e-2)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """Fit a table to another grid: a new sine table, or patches' rows interpolated (bicubic, antialiased)."""
    if old == new:
        return table
    if is_sine_table(table):
        return sine_table(new[0] * new[1] + num_prefix_tokens, table.shape[2], device=table.device, dtype=table.dtype)
    return resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=num_prefix_tokens)


@register_notrace_function
def table_on_grid(table: Tensor, old: Tuple[int, int], new: Tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """Interpolate a learned table as `resize_table` does, with gradients, in a forward pass."""
    # a weighted sum: an interpolation's backward pass on a GPU is not deterministic, autocast rounds a matrix product
    if old[0] == new[0] and old[1] == new[1]:
        return table
    each = torch.eye(old[0] * old[1], device=table.device)[None]
    weights = resample_abs_pos_embed(each, [new[0], new[1]], [old[0], old[1]], num_prefix_tokens=0)  # [1, new, old]
    patches = (weights.to(table.dtype)[..., None] * table[:, None, num_prefix_tokens:]).sum(2)
    return torch.cat([table[:, :num_prefix_tokens], patches], dim=1)
