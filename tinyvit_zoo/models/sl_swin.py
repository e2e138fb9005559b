"""Swin for small data sets, plain and with shifted patches and locality attention: `plain_swin` and `sl_swin`.

Paper: Vision Transformer for Small-Size Datasets, https://arxiv.org/abs/2112.13492 (Lee, Lee and Song, 2021)
Authors' code: https://github.com/aanna0701/SPT_LSA_ViT (no licence; no weights were published)

Three stages of Swin's blocks (arXiv 2103.14030) with windows of 4x4, on maps of 16, 8 and 4 tokens a side: patches of
2 pixels for 32-pixel images, of 4 in the `_64` models. Positions are a table added to the tokens and a bias for each
offset in a window. `spt` replaces the embedding and both mergings by shifted patches; `lsa` learns the temperatures and
masks the diagonal.

Where we differ from the authors: images of any size and shape, the padding of incomplete windows masked; temperatures,
positions and biases are not decayed.
"""
import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from timm.layers import _assert, calculate_drop_path_rates
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import Block, ShiftedMerging, ShiftedPatchTokenization, WindowAttention, patch_grid
from ..weights import unwrap
from ._build import adapt_linear_stem, renamed
from ._stages import Stage, StagedTransformer
from ._tokens import fit_positions
from .sl_vit import register_spt_lsa


class ConvTokenizer(nn.Module):
    """Image to tokens [B, C, H, W] -> [B, N, D]: patch convolution, LayerNorm. Incomplete patches are left out."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int, norm: bool = True, **dd: Any) -> None:
        super().__init__()
        self.reduction = patch_size
        self.cuts_patches = True
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, **dd)
        self.norm = nn.LayerNorm(embed_dim, **dd) if norm else nn.Identity()

    def grid_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return patch_grid(img_size, self.reduction)

    def largest_map(self, img_size: tuple[int, int]) -> int:
        """Return the number of values in the largest activation of an image."""
        height, width = self.grid_size(img_size)
        return self.proj.out_channels * height * width

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class Merging(nn.Module):
    """Merge 2x2 tokens, column by column, [B, H, W, C] -> [B, H // 2, W // 2, 2C]: LayerNorm, Linear."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, **dd)
        self.proj = nn.Linear(4 * dim, 2 * dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        B, height, width, C = x.shape
        x = x[:, :height // 2 * 2, :width // 2 * 2].reshape(B, height // 2, 2, width // 2, 2, C)
        return self.proj(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class LocalSwin(StagedTransformer):
    """Swin, plain or local; `pos_embed` is 'learnable' or 'none' (for images of any size); drop path grows from 0."""
    stages_name, taken_from, pooling = 'layers', '.blocks', ('downsample', 99998)

    @staticmethod
    def init_module(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
            module.reset_parameters()
        elif isinstance(module, WindowAttention):
            module.reset_own_parameters()

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'avg', patch_size: int = 2, embed_dim: int = 96,
                 depths: tuple[int, ...] = (2, 6, 4), num_heads: tuple[int, ...] = (3, 6, 12), window_size: int = 4,
                 mlp_ratio: float = 2., spt: bool = True, lsa: bool = True, pos_embed: str = 'learnable',
                 drop_rate: float = 0., pos_drop_rate: float = 0., proj_drop_rate: float = 0.,
                 drop_path_rate: float = 0.1, device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        if pos_embed not in ('learnable', 'none'):
            raise ZooError(f"pos_embed is {pos_embed!r:.80}, expected 'learnable' or 'none'.")
        super().__init__(img_size, in_chans, embed_dim, num_prefix_tokens=0)
        self.embed_dims = [embed_dim * 2 ** i for i in range(len(depths))]
        self.num_features = self.head_hidden_size = self.embed_dims[-1]
        self.map_features, self.output_fmt, self.feature_dim = True, 'NHWC', -1
        self.patch_size, self.least_size = patch_size, patch_size * 2 ** (len(depths) - 1)
        self._check_size(self.img_size)
        tokenizer = (ShiftedPatchTokenization if spt else ConvTokenizer)(in_chans, embed_dim, patch_size, **dd)
        if window_size > max(4, *(grid := tokenizer.grid_size(self.img_size))):
            raise ZooError(f'window_size is {window_size}, expected at most the {max(grid)} tokens of a side.')
        self._init_tokens(tokenizer, embed_dim, pos_drop_rate, pos_embed, **dd)
        merging = ShiftedMerging if spt else Merging
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.layers: Any = nn.Sequential()
        for i, (dim, heads) in enumerate(zip(self.embed_dims, num_heads, strict=True)):
            blocks: list[nn.Module] = [
                Block(dim, WindowAttention(dim, heads, window_size, shift, lsa, proj_drop_rate, **dd),
                      int(dim * mlp_ratio), proj_drop_rate, rate, **dd)
                for shift, rate in zip(itertools.cycle([0, window_size // 2]), rates[i], strict=False)]
            self.layers.append(Stage(blocks, downsample=merging(dim, **dd) if i + 1 < len(depths) else None))
        self._init_end(num_classes, global_pool, drop_rate, **dd)

    def _grids(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        rows, cols = self.tokenizer.grid_size(img_size)
        return [(rows >> i, cols >> i) for i in range(len(self.layers))]  # a merging leaves out an odd row or column

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the position table for images of another size; windows and their biases stay."""
        super().set_input_size(img_size)
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.attn_mask = None

    def _first_map(self, x: Tensor) -> Tensor:
        """Embed images [B, C, H, W] -> [B, H', W', D]."""
        _assert(x.shape[2] >= self.least_size, f'This model takes images of {self.least_size} pixels a side and more.')
        _assert(x.shape[3] >= self.least_size, f'This model takes images of {self.least_size} pixels a side and more.')
        rows, cols = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        return self._embed(x).reshape(x.shape[0], rows, cols, self.embed_dim)

    def forward_intermediates(  # type: ignore[override]
            self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
            output_fmt: str = 'NCHW', intermediates_only: bool = False,
    ) -> Any:
        """Return the map at the end of each stage, before its merging; `norm` applies to the last stage's alone."""
        if output_fmt not in ('NCHW', 'NHWC'):
            raise ZooError(f"output_fmt is {output_fmt!r:.80}, expected 'NCHW' or 'NHWC'.")
        x, taken, _ = self._run_stages(x, indices, norm, stop_early)
        if output_fmt == 'NCHW':
            taken = [y.permute(0, 3, 1, 2).contiguous() for y in taken]
        return taken if intermediates_only else (x, taken)

    def _end_at(self, last: int) -> None:
        super()._end_at(last)
        self.layers[last].downsample = nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(self._first_map(x)))

    def _largest_width(self, tokens: int) -> int:
        """Return the width of the shifted map."""
        return 5 * self.embed_dim


_AUTHORS_NAMES = (
    (r'^absolute_pos_embed$', 'pos_embed'),
    (r'^patch_embed\.merging\.1\.', 'tokenizer.norm.'),
    (r'^patch_embed\.merging\.2\.', 'tokenizer.proj.'),
    (r'^patch_embed\.', 'tokenizer.'),
    (r'\.downsample\.merging\.1\.', '.downsample.norm.'),
    (r'\.downsample\.merging\.2\.', '.downsample.proj.'),
    (r'\.downsample\.reduction\.', '.downsample.proj.'),
    (r'\.attn\.scale$', '.attn.temperature'),
    (r'(\.blocks\.\d+)\.attn_mask$', r'\1.attn.attn_mask'),
)


def _fit_bias(table: Tensor, window: int) -> Tensor:
    """Pad the biases of a smaller window to a table [(2 * window - 1) ** 2, heads]; the margin is never read."""
    side, missing = math.isqrt(len(table)), 2 * window - 1 - math.isqrt(len(table))
    if table.ndim != 2 or side * side != len(table) or missing <= 0 or missing % 2:
        return table
    margin = missing // 2
    return F.pad(table.unflatten(0, (side, side)), (0, 0, margin, margin, margin, margin)).flatten(0, 1)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: LocalSwin,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Rename the authors' tensors, or ours, bare or wrapped, and fit them to the size and channels of `model`.

    The authors use smaller windows on maps that are smaller than one; their bias table is the middle of ours.
    """
    tensors = renamed(unwrap(state_dict), _AUTHORS_NAMES)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith('relative_position_index')}
    for name, module in model.named_modules():
        if isinstance(module, WindowAttention):
            table, key, stage = f'{name}.relative_position_bias_table', f'{name}.attn_mask', int(name.split('.')[1])
            if table in tensors:
                tensors[table] = _fit_bias(tensors[table], module.window_size)
            rows, cols = (side >> stage for side in model.grid_size)
            module.attn_mask, mask = None, tensors.get(key)
            if mask is not None and ((mask == 0) | (mask == -100)).all():
                del tensors[key]    # the mask of a shift, which follows from the map's size
            elif mask is not None and len(mask) * module.window_size ** 2 == rows * cols and min(
                    rows, cols) > module.window_size:
                module.attn_mask = module.qkv.weight.new_zeros(mask.shape)
    return fit_positions(adapt_linear_stem(tensors, model), model, source_size)


register_spt_lsa(__name__, LocalSwin, checkpoint_filter_fn, large={'patch_size': 4})
