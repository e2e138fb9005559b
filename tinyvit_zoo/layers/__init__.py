# ruff: noqa: F401, I001
from .attention import (
    Block, LocalityAttention, LocalityBlock, SelfAttention, SequencePool, attend, attend_locally, diagonal_mask,
    init_trunc_normal, init_xavier)
from .position import is_sine_table, resize_table, sincos2d_table, sine_table, table_on_grid
from .shifted import (
    PatchTokenization, ShiftedMerging, ShiftedPatchTokenization, adapt_patch_channels, cut_patches, patch_grid,
    shift_diagonally)
from .windows import WindowAttention, attend_in_windows, window_mask
