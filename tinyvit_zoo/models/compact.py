"""Compact transformers for small data: ViT-Lite, CVT and CCT.

Paper: Escaping the Big Data Paradigm with Compact Transformers, https://arxiv.org/abs/2104.05704 (Hassani et al., 2021)
Authors' code and weights: https://github.com/SHI-Labs/Compact-Transformers (Apache-2.0)

ViT-Lite is a small ViT with small patches. CVT drops the class token and pools the sequence with learned weights. CCT
also replaces the patches by a few convolutions. Names are `family_depth_tokenizer`: `cct_7_3x1` has 7 blocks and one
3x3 convolution; `vit_lite_7_4` has 7 blocks and 4x4 patches.

The second LayerNorm of a block replaces the residual stream. A timm `Block` would load the same tensors and give other
outputs, so blocks keep the authors' tensor names.

Where we differ from the authors: `sine` is a fixed sine table (their `_sine` factories built a learnable one, see the
weights' notes); max-pool comes before ReLU (the same values and gradients, a quarter of the work).
"""
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates, trunc_normal_
from torch import Tensor, nn

from ..errors import ZooError
from ..kernels.convolution import conv_pool_relu
from ..layers import SelfAttention, init_trunc_normal, patch_grid
from ..weights import unwrap
from ._build import build_model, register_family, renamed, without
from ._tokens import TokenTransformer, fit_positions


class Tokenizer(nn.Module):
    """Image to tokens [B, C, H, W] -> [B, N, D] by `num_convs` times [conv PxP, ReLU, max-pool 3x3 / 2] (CCT).

    `num_convs=0`: by one PxP patch convolution, which leaves out incomplete patches, as the authors' (ViT-Lite, CVT).
    """

    def __init__(self, kernel_size: int, num_convs: int, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        self.pooled = num_convs > 0
        self.cuts_patches = not self.pooled
        self.kernel_size = kernel_size
        self.stride = max(1, kernel_size // 2 - 1) if self.pooled else kernel_size
        self.padding = max(1, kernel_size // 2) if self.pooled else 0
        self.reduction = (2 * self.stride) ** num_convs if self.pooled else self.stride
        widths = [in_chans, *[64] * (num_convs - 1), embed_dim]
        self.convs = nn.ModuleList([
            nn.Conv2d(a, b, kernel_size, self.stride, self.padding, bias=not self.pooled, **dd)
            for a, b in itertools.pairwise(widths)])

    def _conv_size(self, size: int) -> int:
        return (size + 2 * self.padding - self.kernel_size) // self.stride + 1

    def grid_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of tokens for an image size; ZooError if there are none."""
        if not self.pooled:
            return patch_grid(img_size, self.kernel_size)
        height, width = patch_grid(img_size, 1)
        for _ in self.convs:
            height, width = (self._conv_size(height) + 1) // 2, (self._conv_size(width) + 1) // 2
        return height, width

    def largest_map(self, img_size: tuple[int, int]) -> int:
        """Return the number of values after the first convolution, the largest activation of the tokenizer."""
        channels = int(self.convs[0].out_channels)  # type: ignore[arg-type]
        return channels * self._conv_size(img_size[0]) * self._conv_size(img_size[1])

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # 2-3 times as fast on a CPU, and tokens come for free
        for conv in self.convs:
            if not self.pooled:
                x = conv(x)
            elif torch.jit.is_scripting():
                x = F.relu(F.max_pool2d(conv(x), 3, 2, 1))
            else:
                x = conv_pool_relu(conv, x)  # type: ignore[arg-type]
        return x.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm attention, then a LayerNorm that replaces the stream, then the MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, attn_drop: float, proj_drop: float, drop_path: float,
                 **dd: Any) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.pre_norm = nn.LayerNorm(dim, **dd)
        self.self_attn = SelfAttention(dim, num_heads, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.linear1 = nn.Linear(dim, hidden, **dd)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(proj_drop)
        self.linear2 = nn.Linear(hidden, dim, **dd)
        self.drop2 = nn.Dropout(proj_drop)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0. else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.self_attn(self.pre_norm(x)))
        x = self.norm1(x)
        x = x + self.drop_path2(self.drop2(self.linear2(self.drop1(self.act(self.linear1(x))))))
        return x


class CompactTransformer(TokenTransformer):
    """ViT-Lite, CVT or CCT, by tokenizer and pooling; drop path grows linearly from 0 over the blocks.

    `pos_embed`: 'learnable', 'sine' (fixed, a buffer) or 'none' (images of any size).
    """
    init_table = staticmethod(partial(trunc_normal_, std=0.2))
    tables = ('pos_embed',)

    @staticmethod
    def init_module(module: nn.Module) -> None:
        init_trunc_normal(module)
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()  # for the bias
            nn.init.kaiming_normal_(module.weight)

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'seq', kernel_size: int = 3, num_convs: int = 1, embed_dim: int = 256,
                 depth: int = 7, num_heads: int = 4, mlp_ratio: float = 2., class_token: bool = False,
                 pos_embed: str = 'learnable', drop_rate: float = 0., pos_drop_rate: float = 0.,
                 proj_drop_rate: float = 0., attn_drop_rate: float = 0.1, drop_path_rate: float = 0.1,
                 device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        if pos_embed not in ('learnable', 'sine', 'none'):
            raise ZooError(f"pos_embed is {pos_embed!r:.80}, expected 'learnable', 'sine' or 'none'.")
        super().__init__(img_size, in_chans, embed_dim, num_prefix_tokens=int(class_token))
        self._init_tokens(
            Tokenizer(kernel_size, num_convs, in_chans, embed_dim, **dd), embed_dim, pos_drop_rate, pos_embed, **dd)
        self.blocks = nn.Sequential(*[
            Block(embed_dim, num_heads, mlp_ratio, attn_drop_rate, proj_drop_rate, rate, **dd)
            for rate in calculate_drop_path_rates(drop_path_rate, depth)])
        self._init_end(num_classes, global_pool, drop_rate, **dd)

    def init_weights(self) -> None:
        super().init_weights()
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)


_AUTHORS_NAMES = (
    (r'^tokenizer\.conv_layers\.(\d+)\.0\.', r'tokenizer.convs.\1.'),
    (r'^classifier\.positional_emb$', 'pos_embed'),
    (r'^classifier\.class_emb$', 'cls_token'),
    (r'^classifier\.attention_pool\.', 'attn_pool.score.'),
    (r'^classifier\.fc\.', 'head.'),
    (r'^classifier\.', ''),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: CompactTransformer,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Rename the authors' tensors, or ours, bare or wrapped, and fit them to the image size of `model`.

    A position table in the file is used even for `pos_embed='sine'`: the authors' "sine" models hold learned ones.
    """
    tensors = renamed(unwrap(state_dict), _AUTHORS_NAMES)
    if model.global_pool != 'seq':
        tensors = without(tensors, r'^attn_pool\.', f'the model pools by {model.global_pool!r}')
    if model.pos_embed is not None and not isinstance(model.pos_embed, nn.Parameter):
        tensors.setdefault('pos_embed', model.pos_embed)
    return fit_positions(tensors, model, source_size)


_SHAPES = {2: (128, 2, 1.), 4: (128, 2, 1.), 6: (256, 4, 2.), 7: (256, 4, 2.), 14: (384, 6, 3.)}


def _args(depth: int, kernel_size: int, num_convs: int = 0, **kwargs: Any) -> dict[str, Any]:
    embed_dim, num_heads, mlp_ratio = _SHAPES[depth]
    return dict(depth=depth, embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, kernel_size=kernel_size,
                num_convs=num_convs, **kwargs)


_VIT_LITE: dict[str, Any] = dict(class_token=True, global_pool='token')

register_family(__name__, partial(build_model, CompactTransformer, filter_fn=checkpoint_filter_fn), {
    'vit_lite': ('c10', 32, _args(7, 4, **_VIT_LITE)),
    **{f'vit_lite_{depth}_{patch}': ('c10', 32, _args(depth, patch, **_VIT_LITE))
       for depth, patch in ((2, 4), (4, 4), (6, 4), (7, 4), (7, 8), (7, 16))},
    **{f'cvt_{depth}_4': ('c10', 32, _args(depth, 4)) for depth in (2, 4, 6, 7)},
    **{f'cct_{depth}_3x{convs}': ('c10', 32, _args(depth, 3, convs))
       for depth, convs in ((2, 2), (4, 2), (6, 1), (6, 2), (7, 1), (7, 2))},
    'cct_7_3x1_sine': ('c10', 32, _args(7, 3, 1, pos_embed='sine')),
    'cct_7_7x2': ('fl102', 224, _args(7, 7, 2)),
    'cct_7_7x2_sine': ('fl102', 224, _args(7, 7, 2, pos_embed='sine')),
    'cct_14_7x2': ('in1k', 224, _args(14, 7, 2)),
}, aliases={'vit_lite': 'vit_lite_7_4'}, first_conv='tokenizer.convs.0', paper_ids='arXiv:2104.05704',
    paper_name='Escaping the Big Data Paradigm with Compact Transformers',
    origin_url='https://github.com/SHI-Labs/Compact-Transformers')
