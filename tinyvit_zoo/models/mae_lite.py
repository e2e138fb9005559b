"""The lightweight ViTs of MAE-Lite, for self-supervised pre-training and distillation.

Paper: A Closer Look at Self-Supervised Lightweight Vision Transformers, https://arxiv.org/abs/2205.14443
(Wang et al., 2022)
Authors' code and weights: https://github.com/wangsr126/MAE-Lite (Apache-2.0; written from the paper)

`mae_lite_vit_tiny`, `mae_lite_vit_small` and `mae_lite_vit_base`, the teacher of the distillation, are timm's
`VisionTransformer` with 12 heads, pooled by the normalised mean of the patch tokens, without the class token.
`mae_lite_vit_tiny_rpe` adds a learned bias for every offset between two patches to the attention logits of each block,
beside the table of positions.

A fine-tuned classifier has no norm after the blocks; an encoder for pre-training has one:
`timm.create_model('mae_lite_vit_tiny', num_classes=0, global_pool='token')`. The authors' files load into either.
"""
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Optional

import torch
from timm.layers import RelPosBias, maybe_add_mask, resize_rel_pos_bias_table, resolve_self_attn_mask, to_2tuple
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor

from ..errors import ZooError
from ..layers import sincos2d_table
from ..weights import unwrap
from ._build import Filter, build_model, register_family, renamed, update_model_args, without
from ._tokens import fit_positions, source_grid

_logger = logging.getLogger(__name__)


class RelativeBlock(Block):
    """timm's block, with a bias for the attention logits: one for each offset between patches, three for the class."""

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int], device: Any = None, dtype: Any = None,
                 **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs, device=device, dtype=dtype)
        self.rel_pos = RelPosBias(window_size, num_heads, prefix_tokens=1, device=device, dtype=dtype)

    def forward(self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False,
                rows: Optional[Tensor] = None) -> Tensor:
        """`rows`: indices of the given tokens among all [B, K], the class token being 0; None: all are given."""
        # timm's `get_bias` [1, H, 1 + N, 1 + N], picked head by head, which trains in a fifth of the time
        tokens, table = self.rel_pos.bias_shape[0], self.rel_pos.relative_position_bias_table.t().contiguous()
        bias = table.index_select(1, self.rel_pos.relative_position_index).view(1, -1, tokens, tokens)
        if rows is not None:
            bias = bias[0][:, rows[:, :, None], rows[:, None, :]].transpose(0, 1)  # [B, H, K, K]
        bias = maybe_add_mask(bias, resolve_self_attn_mask(x.shape[1], bias, attn_mask, is_causal))
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=bias)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class RelativeViT(VisionTransformer):
    """timm's VisionTransformer with blocks of `RelativeBlock`. The arguments are timm's."""

    def __init__(self, img_size: int | tuple[int, int] = 224, patch_size: int = 16, in_chans: int = 3,
                 num_classes: int = 1000, global_pool: str = 'avg', fc_norm: Optional[bool] = None,
                 embed_dim: int = 192, depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4.,
                 drop_rate: float = 0., pos_drop_rate: float = 0., proj_drop_rate: float = 0.,
                 attn_drop_rate: float = 0., drop_path_rate: float = 0., device: Any = None, dtype: Any = None) -> None:
        height, width = to_2tuple(img_size)
        super().__init__(img_size, patch_size, in_chans, num_classes, global_pool, embed_dim, depth, num_heads,
                         mlp_ratio, fc_norm=fc_norm, drop_rate=drop_rate, pos_drop_rate=pos_drop_rate,
                         proj_drop_rate=proj_drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate,
                         block_fn=partial(RelativeBlock, window_size=(height // patch_size, width // patch_size)),
                         device=device, dtype=dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name in ('pos_embed', 'cls_token') or '.rel_pos.' in name}

    def set_input_size(
            self, img_size: Optional[tuple[int, int]] = None, patch_size: Optional[tuple[int, int]] = None) -> None:
        """Resize all tables of positions for images or patches of another size."""
        super().set_input_size(img_size, patch_size)
        for block in self.blocks:
            block.rel_pos.set_window_size(self.patch_embed.grid_size)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: VisionTransformer,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Rename the authors' tensors, or ours, bare or wrapped, and fit them to the image size of `model`.

    Takes fine-tuned files (`qkv.bias`, or `q_bias` and `v_bias`) and the encoder of pre-trained ones (MAE, D-MAE,
    D2-MAE, MoCo-v3). Tensors that these lack start fresh, with a warning: `fc_norm`, relative biases, after D2-MAE the
    final norm. They have no classifier: load them with `pretrained_cfg_overlay=dict(file=..., num_classes=0)`.
    """
    tensors, kind = encoder_tensors(unwrap(state_dict))
    tensors = renamed(_joined_biases(tensors), ((r'\.attn\.(relative_position_bias_table)$', r'.rel_pos.\1'),))
    tensors = without(tensors, r'\.relative_position_index$', 'computed')
    if kind:
        classes = getattr(model, 'pretrained_cfg', {}).get('num_classes', 0)
        if 'head.weight' not in tensors and 0 < classes == model.num_classes:
            raise ZooError(f'A file of {kind} pre-training has no classifier (head.weight is missing): use '
                           f'pretrained_cfg_overlay=dict(file=PATH, num_classes=0).')
        tensors = _fitted_encoder(tensors, model, kind, source_size)
    grid = source_grid(tensors.get('pos_embed'), model, source_size)
    return _fit_relative(fit_positions(tensors, model, source_size), model, grid)


def encoder_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the encoder's tensors and their pre-training: 'MAE', 'MoCo-v3', 'self-supervised'; '' if fine-tuned."""
    if any(name.startswith('base_encoder.') for name in tensors):
        tensors = without(tensors, r'^(momentum_encoder|predictor)\.|^base_encoder\.head\.', 'of MoCo-v3')
        return renamed(tensors, ((r'^base_encoder\.', ''),)), 'MoCo-v3'
    tensors = without(tensors, r'^tch_model\.|^(model\.)?attn_adapter\.', 'of the distillation')
    tensors = renamed(tensors, ((r'^(model|encoder)\.', ''),))
    encoder = without(tensors, r'^mask_token$|^decoder_', 'the decoder')
    if len(encoder) < len(tensors):
        return encoder, 'MAE'
    bare = 'norm.weight' in encoder and 'head.weight' not in encoder  # an encoder as our pre-training leaves it
    return encoder, 'self-supervised' if bare else ''


def _joined_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join `q_bias` and `v_bias` to `qkv.bias`, which is zero for the keys."""
    joined = dict(tensors)
    for name in [name for name in tensors if name.endswith('.attn.q_bias')]:
        stem = name.removesuffix('q_bias')
        if f'{stem}qkv.bias' in tensors:
            raise ZooError(f'The file has both {name} and {stem}qkv.bias: remove the wrong one.')
        if f'{stem}v_bias' in tensors:
            q, v = joined.pop(name), joined.pop(f'{stem}v_bias')
            joined[f'{stem}qkv.bias'] = torch.cat([q, torch.zeros_like(q), v])
    return joined


def _fitted_encoder(tensors: Mapping[str, Tensor], model: VisionTransformer, kind: str,
                    source_size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Drop tensors of a pre-trained encoder that `model` does not have, and add initial values of missing ones."""
    own, extra, fresh = model.state_dict(), f'blocks.{len(model.blocks)}.', ['fc_norm.']
    if any(name.startswith(extra) for name in tensors):
        tensors = without(tensors, rf'^{extra}|^norm\.', 'the extra block of D2-MAE, and a norm of its block 8')
        fresh.append('norm.')
    if 'norm.weight' not in own:
        tensors = without(tensors, r'^norm\.', 'this model has its norm after the mean')
    tensors = dict(tensors)
    if 'pos_embed' not in tensors:  # it is fixed in pre-training, so that a file need not hold it
        grid = model.patch_embed.dynamic_feat_size(source_size) if source_size else model.patch_embed.grid_size
        tensors['pos_embed'] = sincos2d_table(
            grid, model.embed_dim, model.num_prefix_tokens, row_first=kind == 'MoCo-v3',
            device=model.pos_embed.device, dtype=model.pos_embed.dtype)
    names = [name for name in own if name.startswith(tuple(fresh))]
    if not any('.rel_pos.' in name for name in tensors):
        names += [name for name in own if '.rel_pos.' in name]
    names = [name for name in names if name not in tensors]
    if names:
        _logger.warning('Not in files of %s pre-training, hence initialized: %s', kind, ', '.join(names))
    return {**tensors, **{name: own[name] for name in names}}


def _fit_relative(
        tensors: Mapping[str, Tensor], model: VisionTransformer, old: tuple[int, int] | None) -> dict[str, Tensor]:
    """Resize the tables of relative positions from the grid `old` to the model's."""
    new, fitted = tuple(model.patch_embed.grid_size), dict(tensors)
    if old is None or old == new:
        return fitted
    lengths = [(2 * height - 1) * (2 * width - 1) + 3 for height, width in (old, new)]
    for name, table in tensors.items():
        if name.endswith('.relative_position_bias_table') and len(table) == lengths[0]:
            fitted[name] = resize_rel_pos_bias_table(table, new, (lengths[1], table.shape[1]), old)
    return fitted


_POOLS = ('', 'avg', 'avgmax', 'max', 'token', 'map')


def build_vision(variant: str, pretrained: bool, model_cls: Any, filter_fn: Filter, own_args: Iterable[str],
                 **kwargs: Any) -> Any:
    """Build a timm ViT; `own_args` names the arguments that timm's exports are to record."""
    size, patch, pool = to_2tuple(kwargs.get('img_size') or 224), kwargs['patch_size'], kwargs.get('global_pool')
    if min(size) < patch:
        raise ZooError(f'{size[0]} x {size[1]} pixels are too few: this model needs at least {patch} x {patch}.')
    if pool is not None and pool not in _POOLS:
        raise ZooError(f'global_pool is {pool!r:.80}, expected {" or ".join(map(repr, _POOLS))}.')
    model = build_model(model_cls, variant, pretrained, filter_fn, **kwargs)
    update_model_args(model, **{name: kwargs[name] for name in own_args})
    return model


def timm_export(model: Any) -> dict[str, Any]:
    """Return arguments for timm: `save_for_hf(model, folder, **timm_export(model))`, to be loaded without the zoo."""
    if type(model) is not VisionTransformer:
        raise ZooError(f"{type(model).__name__} is not a class of timm: export it under its own name, without "
                       f"timm_export.")
    size = {192: 'tiny', 384: 'small'}.get(model.embed_dim, 'base')
    cfg = dict(architecture=f'vit_{size}_patch16_224')
    return dict(model_config=dict(pretrained_cfg=cfg), safe_serialization=True)


def _build(variant: str, pretrained: bool, **kwargs: Any) -> Any:
    model_cls = RelativeViT if variant.endswith('_rpe') else VisionTransformer
    return build_vision(variant, pretrained, model_cls, checkpoint_filter_fn, _TINY, **{'global_pool': 'avg', **kwargs})


_TINY = dict(patch_size=16, embed_dim=192, depth=12, num_heads=12)

register_family(__name__, _build, {
    'mae_lite_vit_tiny': ('in1k', 224, _TINY),
    'mae_lite_vit_tiny_rpe': ('in1k', 224, _TINY),
    'mae_lite_vit_small': ('in1k', 224, {**_TINY, 'embed_dim': 384}),
    'mae_lite_vit_base': ('in1k', 224, {**_TINY, 'embed_dim': 768}),
}, first_conv='patch_embed.proj', paper_ids='arXiv:2205.14443',
    paper_name='A Closer Look at Self-Supervised Lightweight Vision Transformers',
    origin_url='https://github.com/wangsr126/MAE-Lite')
