# ruff: noqa: F401
from .attention import SelfAttention, SequencePool, attend
from .block import Block, LocalityBlock, init_trunc_normal, init_xavier
from .locality import LocalityAttention, attend_locally, diagonal_mask
from .position import is_sine_table, resize_table, sincos2d_table, sine_table, table_on_grid
from .shifted import (
    PatchTokenization,
    ShiftedMerging,
    ShiftedPatchTokenization,
    adapt_patch_channels,
    cut_patches,
    patch_grid,
    shift_diagonally,
)
from .windows import WindowAttention, attend_in_windows, window_mask
