from .attention import SelfAttention, attend
from .block import Block, LocalityBlock, init_trunc_normal, init_xavier
from .convpool import conv_pool_relu
from .locality import LocalityAttention, attend_locally, diagonal_mask
from .merging import ShiftedMerging
from .pooling import SequencePool
from .position import is_sine_table, resize_table, sincos2d_table, sine_table, table_on_grid
from .shifted import (
    PatchTokenization,
    ShiftedPatchTokenization,
    adapt_patch_channels,
    cut_patches,
    patch_grid,
    shift_diagonally,
)
from .windows import WindowAttention, attend_in_windows, window_mask

__all__ = [
    'Block', 'LocalityAttention', 'LocalityBlock', 'PatchTokenization', 'SelfAttention', 'SequencePool',
    'ShiftedMerging', 'ShiftedPatchTokenization', 'WindowAttention', 'adapt_patch_channels', 'attend',
    'attend_in_windows', 'attend_locally', 'conv_pool_relu', 'cut_patches', 'diagonal_mask', 'init_trunc_normal',
    'init_xavier', 'is_sine_table', 'patch_grid', 'resize_table', 'shift_diagonally', 'sincos2d_table', 'sine_table',
    'table_on_grid', 'window_mask',
]
