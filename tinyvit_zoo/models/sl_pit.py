"""PiT for small data sets, with shifted patch tokenization and locality self-attention, or plain.

Paper: Vision Transformer for Small-Size Datasets, https://arxiv.org/abs/2112.13492 (Lee, Lee and Song, 2021)
Authors' code: https://github.com/aanna0701/SPT_LSA_ViT (no licence, no weights published; written from the paper)

PiT is a ViT in three stages. Between two of them the map of tokens is pooled to half its sides and twice its channels,
by convolutions (`plain_pit`) or by shifted patches (`sl_pit`); the class token goes through a Linear beside it.
Positions are added once, at the input. `spt=` and `lsa=` turn each add-on on or off, see layers/shifted.py and
layers/locality.py. `_64` is for 64 pixels: patches of 4, not 2.

Where we differ from the authors: the diagonal's mask comes from the shape, and a map may have an odd side (the
convolutions round it up; shifted patches leave the last row or column out), so that any image size is taken;
convolutions without overlap are a Linear over patches; the temperatures are not to be weight-decayed.
"""
import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Tuple

import torch
from timm.layers import to_2tuple
from timm.models import checkpoint, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import LocalityBlock, PatchTokenization, ShiftedPatchTokenization, init_xavier
from ..weights import pretrained_cfgs, unwrap
from ._build import adapt_linear_stem, build_model, feature_take_indices, renamed
from ._tokens import TokenTransformer, fit_positions
from .sl_vit import AUTHORS_BLOCK_NAMES

__all__ = ['LocalPiT']


class ConvPool(nn.Module):
    """Map to tokens of a map half as large [B, C, H, W] -> [B, N, D]: 3x3 filters channel by channel, then a Linear."""

    def __init__(self, dim: int, out_dim: int, device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, 2, 1, groups=dim, **dd)
        self.proj = nn.Linear(out_dim, out_dim, **dd)

    def grid_size(self, grid: tuple[int, int]) -> tuple[int, int]:
        return (grid[0] + 1) // 2, (grid[1] + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.conv(x).flatten(2).transpose(1, 2))


class Pool(nn.Module):
    """Between two stages, tokens to tokens, a class token in front of both. `grid`: the map's rows and columns."""

    def __init__(self, dim: int, out_dim: int, spt: bool, device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.grid = (0, 0)  # the model sets it
        self.patches = ShiftedPatchTokenization(dim, out_dim, 2, **dd) if spt else ConvPool(dim, out_dim, **dd)
        self.class_proj = nn.Linear(dim, out_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.on_grid(x, self.grid)

    def on_grid(self, x: Tensor, grid: Tuple[int, int]) -> Tensor:
        maps = x[:, 1:].transpose(1, 2).reshape(x.shape[0], x.shape[2], grid[0], grid[1])
        return torch.cat([self.class_proj(x[:, :1]), self.patches(maps)], dim=1)


class Stage(nn.Module):
    """Pooling (none in the first stage), then blocks."""
    if TYPE_CHECKING:
        pool: Any

    def __init__(self, pool: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.pool = pool
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pool(x))

    def on_grid(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """For a map of another size than the model's."""
        return self.blocks(self.pool.on_grid(x, grid))


class LocalPiT(TokenTransformer):
    """PiT with a class token.

    Args:
        img_size: height and width, or one number for both.
        global_pool: 'token' (the authors'), 'avg', 'seq', 'max', 'avgmax', or '' for all tokens.
        embed_dims, depths, num_heads: one a stage.
        spt: shift the image and the maps before patches are cut, at the input and in both poolings.
        lsa: learned temperatures, and no token attends to itself.
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate: before the classifier; after the positions; after each
            projection and in the MLP; of the attention weights. The authors have none.
        drop_path_rate: the same in every block.
    """
    if TYPE_CHECKING:
        cls_token: nn.Parameter
        pos_embed: nn.Parameter
        stages: Any
    init_module = staticmethod(init_xavier)

    def __init__(
            self,
            img_size: int | tuple[int, int] = 32,
            in_chans: int = 3,
            num_classes: int = 10,
            global_pool: str = 'token',
            patch_size: int = 2,
            embed_dims: tuple[int, ...] = (96, 192, 384),
            depths: tuple[int, ...] = (2, 6, 4),
            num_heads: tuple[int, ...] = (2, 4, 8),
            mlp_ratio: float = 2.,
            spt: bool = True,
            lsa: bool = True,
            drop_rate: float = 0.,
            pos_drop_rate: float = 0.,
            proj_drop_rate: float = 0.,
            attn_drop_rate: float = 0.,
            drop_path_rate: float = 0.1,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(img_size, in_chans, embed_dims[-1], num_prefix_tokens=1)
        self._traits = {'first_conv': None}  # the stem is no convolution: `adapt_linear_stem`
        self.spt, self.embed_dims = spt, embed_dims
        tokenization = ShiftedPatchTokenization if spt else PatchTokenization
        self.tokenizer = tokenization(in_chans, embed_dims[0], patch_size, **dd)
        self.grid_size = self.tokenizer.grid_size(self.img_size)

        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dims[0], **dd))
        length = self.grid_size[0] * self.grid_size[1] + 1
        self.pos_embed = nn.Parameter(torch.empty(1, length, embed_dims[0], **dd))
        self.pos_drop = nn.Dropout(pos_drop_rate)

        pools = [nn.Identity(), *(Pool(a, b, spt, **dd) for a, b in itertools.pairwise(embed_dims))]
        self.stages = nn.Sequential(*[
            Stage(pool, [
                LocalityBlock(dim, heads, mlp_ratio, lsa, attn_drop_rate, proj_drop_rate, drop_path_rate, **dd)
                for _ in range(depth)])
            for pool, dim, depth, heads in zip(pools, embed_dims, depths, num_heads, strict=True)])
        self._set_grids(self._grids(self.img_size))
        self.norm = nn.LayerNorm(self.embed_dim, **dd)
        self._init_head(num_classes, global_pool, drop_rate, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        self.apply(self.init_module)
        nn.init.normal_(self.cls_token)
        nn.init.normal_(self.pos_embed)

    def _feature_info(self) -> list[dict[str, Any]]:
        """The tokens after each stage."""
        return [dict(module=f'stages.{i}', num_chs=dim, reduction=self.tokenizer.reduction * 2 ** i)
                for i, dim in enumerate(self.embed_dims)]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        fine = [(r'^stages\.(\d+)\.pool', (0,)), (r'^stages\.(\d+)\.blocks\.(\d+)', None), (r'^norm', (99999,))]
        return dict(stem=r'^cls_token|^pos_embed|^tokenizer', blocks=r'^stages\.(\d+)' if coarse else fine)

    def _grids(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of each stage's map; ZooError where one would have none."""
        least = self.tokenizer.patch_size * (2 ** (len(self.stages) - 1) if self.spt else 1)
        if min(img_size) < least:
            raise ZooError(f'A {img_size[0]} x {img_size[1]} image gives no token in the last stage: this model takes '
                           f'{least} x {least} pixels and more.')
        grids = [self.tokenizer.grid_size(img_size)]
        for stage in self.stages[1:]:
            grids.append(stage.pool.patches.grid_size(grids[-1]))
        return grids

    def _set_grids(self, grids: list[tuple[int, int]]) -> None:
        for stage, grid in zip(self.stages[1:], grids[:-1], strict=True):
            stage.pool.grid = grid

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        grids = self._grids(to_2tuple(img_size))
        super().set_input_size(img_size)
        self._set_grids(grids)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            return_prefix_tokens: bool = False,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Any:
        """The tokens after each stage; the arguments are TokenTransformer's.

        The final LayerNorm has the last stage's width: `norm` is for that one, and the final features of a pass that
        stops before it have none.
        """
        take, last = feature_take_indices(len(self.stages), indices)
        stages = self.stages[:last + 1] if stop_early else self.stages
        x, taken = self._embed(x), []
        for i, stage in enumerate(stages):
            x = checkpoint(stage, x) if self.grad_checkpointing else stage(x)
            if i in take:
                taken.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        grids = self._grids(self.img_size)
        outputs = self._as_outputs(taken, [grids[i] for i in take], return_prefix_tokens, output_fmt)
        if intermediates_only:
            return outputs
        return self.norm(x) if len(stages) == len(self.stages) else x, outputs

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages behind the last index, and with them the final norm and the head, which have their width."""
        take, last = feature_take_indices(len(self.stages), indices)
        shorter = last < len(self.stages) - 1
        self.stages = self.stages[:last + 1]
        self.num_features = self.head_hidden_size = self.embed_dim = self.embed_dims[last]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, '')
        return take

    @torch.jit.ignore
    def _features_of_any_size(self, x: Tensor) -> Tensor:
        grids = self._grids((x.shape[2], x.shape[3]))
        x = self.stages[0](self._embed(x))
        for stage, grid in zip(self.stages[1:], grids[:-1], strict=True):
            x = checkpoint(stage.on_grid, x, grid) if self.grad_checkpointing else stage.on_grid(x, grid)
        return self.norm(x)

    def _largest_activation(self) -> int:
        """That of the first stage, whose map is the largest."""
        tokens = self.grid_size[0] * self.grid_size[1] + 1
        return max(self.tokenizer.largest_map(self.img_size), 3 * tokens * self.embed_dims[0])

    def forward_features(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.dynamic_img_size:
                return self._features_of_any_size(x)
        x = self._embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x)
        else:
            x = self.stages(x)
        return self.norm(x)


_AUTHORS_NAMES: tuple[tuple[str, Any], ...] = (
    (r'^pos_embedding$', 'pos_embed'),
    (r'^to_patch_embedding\.merging\.1\.', 'tokenizer.norm.'),
    (r'^to_patch_embedding\.(merging\.2|\d+)\.', 'tokenizer.proj.'),
    (r'^layers\.(\d+)\.', lambda match: f'stages.{(int(match[1]) + 1) // 2}.'),  # blocks, pool, blocks, pool, blocks
    (r'^(stages\.\d+)\.layers\.', r'\1.blocks.'),
    (r'^(stages\.\d+)\.class_linear\.', r'\1.pool.class_proj.'),
    (r'^(stages\.\d+)\.merging\.1\.', r'\1.pool.patches.norm.'),
    (r'^(stages\.\d+)\.merging\.2\.', r'\1.pool.patches.proj.'),
    (r'^mlp_head\.0\.', 'norm.'),
    (r'^mlp_head\.1\.', 'head.'),
    *AUTHORS_BLOCK_NAMES,
)


def _name_conv_pools(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names for a convolutional pooling's modules, told by their weights' shapes; 1x1 convolutions become Linear."""
    named = {}
    for name, tensor in tensors.items():
        match = re.match(r'(stages\.\d+)\.(?!pool\.|blocks\.)(.+)\.(weight|bias)$', name)
        weight = tensors.get(f'{match[1]}.{match[2]}.weight') if match else None
        if match and weight is not None:
            if weight.ndim == 2:
                part = 'class_proj'
            else:
                part = 'patches.proj' if weight.shape[-1] == 1 else 'patches.conv'
            name = f'{match[1]}.pool.{part}.{match[3]}'
        named[name] = tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[-1] == 1 else tensor
    return named


def checkpoint_filter_fn(
        state_dict: Mapping[str, Any], model: LocalPiT, source_size: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """The authors' tensors, or ours, bare or wrapped, as `model` names and sizes them.

    The position table follows the image size (`fit_positions`), the stem the channels (`adapt_linear_stem`). A patch
    convolution becomes a Linear over patches.
    """
    tensors = _name_conv_pools(renamed(unwrap(state_dict), _AUTHORS_NAMES))
    stem = tensors.get('tokenizer.proj.weight')
    if stem is not None and stem.ndim == 4:
        tensors['tokenizer.proj.weight'] = stem.permute(0, 2, 3, 1).flatten(1)
    return adapt_linear_stem(fit_positions(tensors, model, source_size), model, 'tokenizer')


def _sl_pit(variant: str, pretrained: bool, **kwargs: Any) -> Any:
    return build_model(
        LocalPiT, variant, pretrained, checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2), feature_cls='getter'), **kwargs)


default_cfgs = generate_default_cfgs(pretrained_cfgs(
    {
        **dict.fromkeys(['plain_pit', 'sl_pit'], ('c10', 32)),
        **dict.fromkeys(['plain_pit_64', 'sl_pit_64'], ('timnet', 64)),
    },
    aliases={}, fixed_input_size=True, first_conv='tokenizer.proj', classifier='head', license='apache-2.0',
    paper_ids='arXiv:2112.13492', paper_name='Vision Transformer for Small-Size Datasets',
    origin_url='https://github.com/aanna0701/SPT_LSA_ViT'))


@register_model
def plain_pit(pretrained: bool = False, **kwargs: Any) -> LocalPiT:
    return _sl_pit('plain_pit', pretrained, **{'spt': False, 'lsa': False, **kwargs})


@register_model
def plain_pit_64(pretrained: bool = False, **kwargs: Any) -> LocalPiT:
    return _sl_pit('plain_pit_64', pretrained, **{'patch_size': 4, 'spt': False, 'lsa': False, **kwargs})


@register_model
def sl_pit(pretrained: bool = False, **kwargs: Any) -> LocalPiT:
    return _sl_pit('sl_pit', pretrained, **kwargs)


@register_model
def sl_pit_64(pretrained: bool = False, **kwargs: Any) -> LocalPiT:
    return _sl_pit('sl_pit_64', pretrained, **{'patch_size': 4, **kwargs})
