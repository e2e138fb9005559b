"""ViT, Swin and CaiT that learn from small data by self-distillation first: `ssl_vit`, `ssl_swin`, `ssl_cait`.

Paper: How to Train Vision Transformer on Small-scale Datasets?, https://arxiv.org/abs/2210.07240
(Gani, Naseer and Yaqub, 2022)
Authors' code: https://github.com/hananshafi/vits-for-small-scale-datasets (no licence; written from a description)

Pre-training uses views of different sizes, so these models take images of any size. ViT and CaiT interpolate their
position table to the grid of the image (bicubic). Swin has its positions in the biases of its windows; a map that does
not fill its windows is padded, and no token attends to the padding.

`_64` is for 64 pixels: patches twice as large, the same tokens.

Where we differ from the authors: their CaiT gives a smaller image the first rows of its table, and their Swin attends
to the padding. Biases of windows, positions and LayerScale are not decayed.
"""
from collections.abc import Mapping
from typing import Any, Optional, Tuple

import torch
from timm.layers import _assert, calculate_drop_path_rates
from timm.models.cait import LayerScaleBlock, LayerScaleBlockClassAttn
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import LocalityBlock, PatchTokenization, WindowAttention, init_trunc_normal, table_on_grid
from ..weights import unwrap
from . import sl_swin
from ._build import adapt_linear_stem, build_model, register_family, renamed, without
from ._tokens import TokenTransformer, fit_positions
from .sl_cait import LateClassToken
from .sl_swin import ConvTokenizer, LocalSwin

torch.fx.wrap('table_on_grid')  # not traced: it branches on the size
_EPS = 1e-6            # of every LayerNorm
_LAYER_SCALE = 1e-5    # initial value


class AnySize(TokenTransformer):
    """Interpolate the position table to images of any size."""

    @staticmethod
    def init_module(module: nn.Module) -> None:
        init_trunc_normal(module)
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.LayerNorm):
            module.eps = _EPS
        elif isinstance(module, WindowAttention):
            module.reset_own_parameters()
        elif isinstance(module, (LayerScaleBlock, LayerScaleBlockClassAttn)):
            nn.init.constant_(module.gamma_1, _LAYER_SCALE)
            nn.init.constant_(module.gamma_2, _LAYER_SCALE)

    def _positions(self, x: Tensor) -> Optional[Tensor]:
        patch = self.tokenizer.reduction
        _assert(x.shape[2] >= patch, f'This model takes images of {patch} pixels a side and more.')
        _assert(x.shape[3] >= patch, f'This model takes images of {patch} pixels a side and more.')
        if self.pos_embed is None:
            return None
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        return table_on_grid(self.pos_embed, self.grid_size, grid, self.num_early_tokens)


class SslViT(AnySize):
    """ViT with a class token; drop path grows linearly from 0 over the blocks."""

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'token', patch_size: int = 4, embed_dim: int = 192, depth: int = 9,
                 num_heads: int = 12, mlp_ratio: float = 2., drop_rate: float = 0., pos_drop_rate: float = 0.,
                 proj_drop_rate: float = 0., attn_drop_rate: float = 0., drop_path_rate: float = 0.1,
                 device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(img_size, in_chans, embed_dim, num_prefix_tokens=1)
        tokenizer = ConvTokenizer(in_chans, embed_dim, patch_size, norm=False, **dd)
        self._init_tokens(tokenizer, embed_dim, pos_drop_rate, **dd)
        self.blocks = nn.Sequential(*[
            LocalityBlock(
                embed_dim, num_heads, mlp_ratio, False, attn_drop_rate, proj_drop_rate, rate, qkv_bias=True, **dd)
            for rate in calculate_drop_path_rates(drop_path_rate, depth)])
        self._init_end(num_classes, global_pool, drop_rate, **dd)


class SslSwin(AnySize, LocalSwin):
    """Swin with no positions but the biases of its windows: LocalSwin, initialised and normalised as here."""


def _mix_heads(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a Linear over the heads [H, ...] -> [H, ...]."""
    return torch.addmm(bias[:, None], weight, x.flatten(1)).view_as(x)


class TalkingHeads(nn.Module):
    """timm's TalkingHeadAttn, parameter for parameter; the heads come first, so that mixing them moves nothing."""
    mixes_heads = True

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float, **dd: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj_l = nn.Linear(num_heads, num_heads, **dd)
        self.proj_w = nn.Linear(num_heads, num_heads, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._project(x)
        attn = self._mixed_logits(q, k).softmax(dim=-1)
        attn = self.attn_drop(_mix_heads(attn, self.proj_w.weight, self.proj_w.bias))
        x = (attn.to(v.dtype) @ v).permute(1, 2, 0, 3).flatten(2)
        return self.proj_drop(self.proj(x))

    def _project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [H, B, N, D]."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 3, 0, 1, 4).unbind(0)
        return q, k, v

    def _mixed_logits(self, q: Tensor, k: Tensor) -> Tensor:
        return _mix_heads(q @ k.transpose(-2, -1), self.proj_l.weight * self.head_dim ** -0.5, self.proj_l.bias)

    def logits(self, x: Tensor) -> Tensor:
        """Return the input of the softmax [B, H, N, N]."""
        q, k, _ = self._project(x)
        return self._mixed_logits(q, k).transpose(0, 1)


class ClassBlock(LayerScaleBlockClassAttn):
    """timm's block of the class token, the first of the tokens: it attends to all of them, itself included."""

    def forward(self, x: Tensor) -> Tensor:
        token = x[:, :1] + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        token = token + self.drop_path(self.gamma_2 * self.mlp(self.norm2(token)))
        return torch.cat([token, x[:, 1:]], dim=1)


class SslCaiT(AnySize, LateClassToken):
    """CaiT: heads mixed, LayerScale on every branch, drop path the same in every patch block, none in class blocks."""

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'token', patch_size: int = 4, embed_dim: int = 192, depth: int = 24,
                 class_depth: int = 2, num_heads: int = 4, mlp_ratio: float = 2., class_mlp_ratio: float = 4.,
                 drop_rate: float = 0., pos_drop_rate: float = 0., proj_drop_rate: float = 0.,
                 attn_drop_rate: float = 0., drop_path_rate: float = 0.1, device: Any = None,
                 dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(img_size, in_chans, embed_dim, num_prefix_tokens=1, late_class_token=True)
        self._init_tokens(PatchTokenization(in_chans, embed_dim, patch_size, **dd), embed_dim, pos_drop_rate, **dd)
        self.num_heads = num_heads
        self.blocks = nn.Sequential(*[
            LayerScaleBlock(
                embed_dim, num_heads, mlp_ratio, qkv_bias=True, proj_drop=proj_drop_rate, attn_drop=attn_drop_rate,
                drop_path=drop_path_rate, attn_block=TalkingHeads, **dd)
            for _ in range(depth)])
        self.class_blocks = nn.Sequential(*[
            ClassBlock(embed_dim, num_heads, class_mlp_ratio, qkv_bias=True, **dd) for _ in range(class_depth)])
        self._init_end(num_classes, global_pool, drop_rate, **dd)

    def _largest_width(self, tokens: int) -> int:
        """Return the width of queries, keys and values, or of the logits of all heads."""
        return max(3 * self.embed_dim, self.num_heads * tokens)


_AUTHORS_NAMES = (
    (r'^patch_embed\.(1\.)?', 'tokenizer.'),
    (r'^tokenizer\.(weight|bias)$', r'tokenizer.proj.\1'),
    (r'^blocks_token_only\.', 'class_blocks.'),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: Any,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Rename the authors' tensors, or ours, bare or wrapped, and fit them to the size and channels of `model`.

    A self-distillation's checkpoint gives the teacher's backbone, or the student's without a teacher.
    """
    tensors = without(unwrap(state_dict), r'^mlphead\.', 'the projection head of the pre-training')
    strange = [name for name in tensors if not name.startswith('backbone.')]
    if 0 < len(strange) < len(tensors):
        raise ZooError(f'The checkpoint of backbone.* and mlphead.* also holds {", ".join(strange[:5])}: omit it.')
    tensors = renamed(tensors, [(r'^backbone\.', '')])
    if isinstance(model, SslSwin):
        return sl_swin.checkpoint_filter_fn(tensors, model, source_size)
    tensors = renamed(tensors, _AUTHORS_NAMES)
    return adapt_linear_stem(fit_positions(tensors, model, source_size), model)


_CLASSES: dict[str, type[AnySize]] = {'vit': SslViT, 'swin': SslSwin, 'cait': SslCaiT}
_SWIN = dict(spt=False, lsa=False, pos_embed='none')


def _build(variant: str, pretrained: bool, **kwargs: Any) -> Any:
    return build_model(_CLASSES[variant.split('_')[1]], variant, pretrained, checkpoint_filter_fn, **kwargs)


register_family(__name__, _build, {
    'ssl_vit': ('c10', 32, {}),
    'ssl_vit_64': ('timnet', 64, {'patch_size': 8}),
    'ssl_swin': ('c10', 32, _SWIN),
    'ssl_swin_64': ('timnet', 64, {'patch_size': 4, **_SWIN}),
    'ssl_cait': ('c10', 32, {}),
    'ssl_cait_64': ('timnet', 64, {'patch_size': 8}),
}, first_conv='tokenizer.proj', paper_ids='arXiv:2210.07240',
    paper_name='How to Train Vision Transformer on Small-scale Datasets?',
    origin_url='https://github.com/hananshafi/vits-for-small-scale-datasets')
