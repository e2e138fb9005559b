"""PiT for small data sets, with shifted patch tokenization and locality self-attention, or plain.

Paper: Vision Transformer for Small-Size Datasets, https://arxiv.org/abs/2112.13492 (Lee, Lee and Song, 2021)
Authors' code: https://github.com/aanna0701/SPT_LSA_ViT (no licence, no weights published; written from the paper)

PiT is a ViT in three stages. Between stages the map of tokens is pooled to half its sides and twice its channels, by
convolutions (`plain_pit`) or shifted patches (`sl_pit`); the class token passes through a Linear. Positions are added
at the input. `_64` is for 64 pixels: patches of 4, not 2.

Where we differ from the authors: any image size (convolutions round odd maps up, shifted patches drop the last row or
column); convolutions without overlap are a Linear over patches; temperatures are not decayed.
"""
import itertools
import re
from collections.abc import Mapping
from typing import Any, Tuple

import torch
from torch import Tensor, nn

from ..layers import LocalityBlock, PatchTokenization, ShiftedPatchTokenization, init_xavier
from ..weights import unwrap
from ._build import adapt_linear_stem, renamed
from ._stages import Stage, StagedTransformer
from ._tokens import fit_positions
from .sl_vit import AUTHORS_NAMES, register_spt_lsa


class ConvPool(nn.Module):
    """Map to tokens of a half-size map [B, C, H, W] -> [B, N, D]: depthwise 3x3 convolution, Linear."""

    def __init__(self, dim: int, out_dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, 2, 1, groups=dim, **dd)
        self.proj = nn.Linear(out_dim, out_dim, **dd)

    def grid_size(self, grid: tuple[int, int]) -> tuple[int, int]:
        return (grid[0] + 1) // 2, (grid[1] + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.conv(x).flatten(2).transpose(1, 2))


class Pool(nn.Module):
    """Pool the tokens between two stages, the class token in front; `grid`: the map's rows and columns."""

    def __init__(self, dim: int, out_dim: int, spt: bool, **dd: Any) -> None:
        super().__init__()
        self.grid = (0, 0)  # the model sets it
        self.patches = ShiftedPatchTokenization(dim, out_dim, 2, **dd) if spt else ConvPool(dim, out_dim, **dd)
        self.class_proj = nn.Linear(dim, out_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.on_grid(x, self.grid)

    def on_grid(self, x: Tensor, grid: Tuple[int, int]) -> Tensor:
        maps = x[:, 1:].transpose(1, 2).reshape(x.shape[0], x.shape[2], grid[0], grid[1])
        return torch.cat([self.class_proj(x[:, :1]), self.patches(maps)], dim=1)


class LocalPiT(StagedTransformer):
    """PiT with a class token: `spt` acts at the input and in both poolings; drop path is the same in every block."""
    init_module = staticmethod(init_xavier)
    init_table = staticmethod(nn.init.normal_)
    tables = ('cls_token', 'pos_embed')

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'token', patch_size: int = 2, embed_dims: tuple[int, ...] = (96, 192, 384),
                 depths: tuple[int, ...] = (2, 6, 4), num_heads: tuple[int, ...] = (2, 4, 8), mlp_ratio: float = 2.,
                 spt: bool = True, lsa: bool = True, drop_rate: float = 0., pos_drop_rate: float = 0.,
                 proj_drop_rate: float = 0., attn_drop_rate: float = 0., drop_path_rate: float = 0.1,
                 device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(img_size, in_chans, embed_dims[-1], num_prefix_tokens=1)
        self.spt, self.embed_dims = spt, embed_dims
        tokenizer = (ShiftedPatchTokenization if spt else PatchTokenization)(in_chans, embed_dims[0], patch_size, **dd)
        self._init_tokens(tokenizer, embed_dims[0], pos_drop_rate, **dd)
        pools = [nn.Identity(), *(Pool(a, b, spt, **dd) for a, b in itertools.pairwise(embed_dims))]
        self.stages: Any = nn.Sequential(*[
            Stage([
                LocalityBlock(dim, heads, mlp_ratio, lsa, attn_drop_rate, proj_drop_rate, drop_path_rate, **dd)
                for _ in range(depth)], pool=pool)
            for pool, dim, depth, heads in zip(pools, embed_dims, depths, num_heads, strict=True)])
        self._end_at(len(self.stages) - 1)
        self._set_grids()
        self._init_end(num_classes, global_pool, drop_rate, **dd)

    def _grids(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        self._check_size(img_size)
        grids = [self.tokenizer.grid_size(img_size)]
        for stage in self.stages[1:]:
            grids.append(stage.pool.patches.grid_size(grids[-1]))
        return grids

    def _set_grids(self) -> None:
        for stage, grid in zip(self.stages[1:], self._grids(self.img_size), strict=False):
            stage.pool.grid = grid

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        super().set_input_size(img_size)
        self._set_grids()

    def _end_at(self, last: int) -> None:
        super()._end_at(last)
        self.embed_dim = self.num_features
        self.least_size = self.tokenizer.patch_size * (2 ** last if self.spt else 1)

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None,
                              return_prefix_tokens: bool = False, norm: bool = False, stop_early: bool = False,
                              output_fmt: str = 'NCHW', intermediates_only: bool = False) -> Any:
        """Return the tokens after each stage; the arguments are TokenTransformer's."""
        grids = self._grids((x.shape[2], x.shape[3]) if self.dynamic_img_size else self.img_size)
        x, taken, take = self._run_stages(x, indices, norm, stop_early, grids if self.dynamic_img_size else ())
        outputs = self._as_outputs(taken, [grids[i] for i in take], return_prefix_tokens, output_fmt)
        return outputs if intermediates_only else (x, outputs)

    def _largest_width(self, tokens: int) -> int:
        """Return the width of the first stage, whose map is the largest."""
        return 3 * self.embed_dims[0]

    def forward_features(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.dynamic_img_size:
                grids = self._grids((x.shape[2], x.shape[3]))
                x = self.stages[0](self._embed(x))
                for stage, grid in zip(self.stages[1:], grids, strict=False):
                    x = stage.forward_blocks(stage.pool.on_grid(x, grid))
                return self.norm(x)
        return self.norm(self.stages(self._embed(x)))


_AUTHORS_NAMES: tuple[tuple[str, Any], ...] = (
    (r'^layers\.(\d+)\.', lambda match: f'stages.{(int(match[1]) + 1) // 2}.'),  # blocks, pool, blocks, pool, blocks
    (r'^(stages\.\d+)\.layers\.', r'\1.blocks.'),
    (r'^(stages\.\d+)\.class_linear\.', r'\1.pool.class_proj.'),
    (r'^(stages\.\d+)\.merging\.1\.', r'\1.pool.patches.norm.'),
    (r'^(stages\.\d+)\.merging\.2\.', r'\1.pool.patches.proj.'),
    *AUTHORS_NAMES[1:],
)


def _name_conv_pools(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the modules of a convolutional pooling by the shapes of their weights; 1x1 convolutions become Linear."""
    named = {}
    for name, tensor in tensors.items():
        match = re.match(r'(stages\.\d+)\.(?!pool\.|blocks\.)(.+)\.(weight|bias)$', name)
        weight = tensors.get(f'{match[1]}.{match[2]}.weight') if match else None
        if match and weight is not None:
            part = 'class_proj' if weight.ndim == 2 else f'patches.{"proj" if weight.shape[-1] == 1 else "conv"}'
            name = f'{match[1]}.pool.{part}.{match[3]}'
        named[name] = tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[-1] == 1 else tensor
    return named


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: LocalPiT,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Rename the authors' tensors, or ours, bare or wrapped, and fit them to the size and channels of `model`."""
    tensors = _name_conv_pools(renamed(unwrap(state_dict), _AUTHORS_NAMES))
    stem = tensors.get('tokenizer.proj.weight')
    if stem is not None and stem.ndim == 4:  # a patch convolution becomes a Linear over patches
        tensors['tokenizer.proj.weight'] = stem.permute(0, 2, 3, 1).flatten(1)
    return adapt_linear_stem(fit_positions(tensors, model, source_size), model)


register_spt_lsa(__name__, LocalPiT, checkpoint_filter_fn, large={'patch_size': 4})
