"""The base class of the token transformers, which implements timm's contract for all families; places of tokens."""
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

import torch
from timm.layers import _assert, get_device_dtype, global_pool_nlc, to_2tuple, trunc_normal_
from timm.models import VisionTransformer, checkpoint, checkpoint_seq
from timm.models.cait import Cait, TalkingHeadAttn
from torch import Tensor, nn

from ..errors import ZooError
from ..kernels.memory import slice_length
from ..layers import SequencePool, resize_table, sine_table, table_on_grid
from ._arguments import check_arguments
from ._build import feature_take_indices, update_model_input_size

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A block of a model and the place of its tokens on the image."""
    name: str                       # as `model.get_submodule` takes it
    block: nn.Module
    grid: tuple[int, int]           # rows and columns of its patch tokens
    stride: tuple[float, float]     # pixels from one to the next, down and right
    prefix: int                     # tokens in front of the patches
    class_only: bool = False        # its only query is the class token

    @property
    def attention(self) -> Any:
        return getattr(self.block, 'attn', None) or getattr(self.block, 'self_attn', None)

    @property
    def mixes_heads(self) -> bool:
        """Return whether heads are mixed after the softmax too."""
        return isinstance(self.attention, TalkingHeadAttn) or getattr(self.attention, 'mixes_heads', False)


def place(name: str, blocks: Iterable[nn.Module], grid: tuple[int, int], stride: Any, prefix: int, first: int = 0,
          class_only: bool = False) -> list[Layer]:
    """Make the layers of blocks named `name.{first}` and so on; `stride` is a pair, or one number for both."""
    return [Layer(f'{name}.{i}', block, (grid[0], grid[1]), tuple(to_2tuple(stride)), prefix, class_only)
            for i, block in enumerate(blocks, first)]


def block_layers(model: Any) -> list[Layer]:
    """Return the blocks, in order, of a model of the zoo or a ViT, DeiT or CaiT of timm; of any other none."""
    if hasattr(model, 'block_layers'):
        return model.block_layers()
    if not isinstance(model, (VisionTransformer, Cait)) or not hasattr(model.patch_embed, 'feat_ratio'):
        return []
    grid, ratio = model.patch_embed.grid_size, model.patch_embed.feat_ratio(as_scalar=False)
    if isinstance(model, VisionTransformer):
        return place('blocks', model.blocks, grid, ratio, model.num_prefix_tokens)
    return (place('blocks', model.blocks, grid, ratio, 0)
            + place('blocks_token_only', model.blocks_token_only, grid, ratio, 1, class_only=True))


class TokenTransformer(nn.Module):
    """Tokens and positions, a stack of blocks of one width, a norm, a pooling and a linear head.

    Args of all families:
        img_size: height and width, or one number for both.
        global_pool: 'token', 'avg', 'seq' (SequencePool), 'max', 'avgmax', or '' for all tokens.
        drop_rate, pos_drop_rate: before the classifier; after the positions.
        proj_drop_rate, attn_drop_rate: after each projection and in the MLP; of the attention weights.

    A family's constructor calls `_init_tokens`, sets `blocks`, then calls `_init_end`.

    The class token precedes the patches in all blocks and has a row in the position table; with
    `late_class_token=True` the family's `_finish` adds it after the blocks.
    """
    default_out_indices: Any = 3                # of features_only
    tables: tuple[str, ...] = ('pos_embed', 'cls_token')    # in the order in which they are initialised
    init_table: Callable[[Tensor], Any] = staticmethod(partial(trunc_normal_, std=0.02))
    if TYPE_CHECKING:
        tokenizer: Any
        cls_token: Tensor | None
        pos_embed: Tensor | None
        pos_drop: nn.Module
        blocks: nn.Sequential
        norm: nn.Module
        attn_pool: nn.Module | None
        head: nn.Module
        grid_size: tuple[int, int]

    def __init__(self, img_size: int | tuple[int, int], in_chans: int, embed_dim: int, num_prefix_tokens: int,
                 late_class_token: bool = False) -> None:
        super().__init__()
        self.img_size = to_2tuple(img_size)
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = num_prefix_tokens  # of the features that `forward_features` returns
        self.num_early_tokens = 0 if late_class_token else num_prefix_tokens  # of the blocks' inputs
        self.grad_checkpointing = False
        self.map_features = False  # whether features are maps [B, H, W, C], not tokens
        self.dynamic_img_size = False  # as timm's: use images of any size, with positions to match

    def _init_tokens(
            self, tokenizer: Any, dim: int, pos_drop_rate: float, pos_embed: str = 'learnable', **dd: Any) -> None:
        """Set the tokenizer, class token and positions; `pos_embed`: 'learnable', 'sine' (a buffer) or 'none'."""
        self.tokenizer = tokenizer
        if isinstance(getattr(tokenizer, 'proj', None), nn.Linear):
            self._traits = {'first_conv': None}  # timm must not adapt it as a convolution: see `adapt_linear_stem`
        self.grid_size = tokenizer.grid_size(self.img_size)
        token = nn.Parameter(torch.empty(1, 1, dim, **dd)) if self.num_prefix_tokens else None
        if self.num_early_tokens == self.num_prefix_tokens:
            self.cls_token = token
        table = torch.empty(1, self.grid_size[0] * self.grid_size[1] + self.num_early_tokens, dim, **dd)
        if pos_embed == 'sine':
            self.register_buffer('pos_embed', table)
        else:
            self.pos_embed = nn.Parameter(table) if pos_embed == 'learnable' else None
        self.cls_token = token  # a late one is registered after the positions
        self.pos_drop = nn.Dropout(pos_drop_rate)

    def _init_end(self, num_classes: int, global_pool: str, drop_rate: float, **dd: Any) -> None:
        """Set the norm, the pooling and the head, then initialise the model."""
        self.norm = nn.LayerNorm(self.num_features, **dd)
        self.global_pool, self.attn_pool = '', None
        self._set_pool(global_pool, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.feature_info = self._feature_info()
        self.init_weights()

    def _feature_info(self) -> list[dict[str, Any]]:
        """Describe the input of the first block, then the output of each block."""
        modules = ['pos_drop', *(f'blocks.{i}' for i in range(len(self.blocks)))]
        return [dict(module=name, num_chs=self.embed_dim, reduction=self.tokenizer.reduction) for name in modules]

    @staticmethod
    def init_module(module: nn.Module) -> None:
        """Initialise one module as the family's authors do."""
        raise NotImplementedError

    def init_weights(self) -> None:
        self.apply(self.init_module)
        for name in self.tables:
            table = getattr(self, name)
            if isinstance(table, nn.Parameter):
                self.init_table(table)
            elif table is not None:
                table.copy_(sine_table(table.shape[1], table.shape[2], table.device, table.dtype))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        names = [name for name, _ in self.named_parameters()]
        kept = ('.temperature', '.gamma', '.gamma_1', '.gamma_2', '.relative_position_bias_table')
        return {name for name in names if name in ('pos_embed', 'cls_token') or name.endswith(kept)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(stem=r'^cls_token|^pos_embed|^tokenizer', blocks=[(r'^blocks\.(\d+)', None), (r'^norm', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def _set_pool(self, global_pool: str, **dd: Any) -> None:
        known = ('', 'seq', 'avg', 'max', 'avgmax') + (('token',) if self.num_prefix_tokens else ())
        if global_pool not in known:
            raise ZooError(f'global_pool is {global_pool!r:.80}, expected one of {", ".join(map(repr, known))}.')
        if global_pool != self.global_pool:
            self.global_pool, self.attn_pool = global_pool, None
            if global_pool == 'seq':
                self.attn_pool = SequencePool(self.num_features, **dd).apply(self.init_module).train(self.training)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head (`num_classes=0`: none) and, if given, the pooling."""
        check_arguments(type(self), {'num_classes': num_classes})
        dd = get_device_dtype(self)
        if global_pool is not None:
            self._set_pool(global_pool, **dd)
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head.apply(self.init_module).train(self.training)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the position table for images of another size."""
        check_arguments(type(self), {'img_size': img_size})
        old, new = self.grid_size, self.tokenizer.grid_size(to_2tuple(img_size))
        if self.pos_embed is not None:
            with torch.no_grad():
                table = resize_table(self.pos_embed.detach(), old, new, self.num_early_tokens)
            learned = isinstance(self.pos_embed, nn.Parameter)
            self.pos_embed = nn.Parameter(table, self.pos_embed.requires_grad) if learned else table
        self.img_size, self.grid_size = to_2tuple(img_size), new
        update_model_input_size(self, self.img_size)

    def _positions(self, x: Tensor) -> Optional[Tensor]:
        """Return the position table for images [B, C, H, W], of any size if `dynamic_img_size` is set."""
        if not torch.jit.is_scripting():
            if self.dynamic_img_size and self.pos_embed is not None:
                resize = table_on_grid if isinstance(self.pos_embed, nn.Parameter) else resize_table
                grid = self.tokenizer.grid_size((x.shape[2], x.shape[3]))
                return resize(self.pos_embed, self.grid_size, grid, self.num_early_tokens)
        if self.pos_embed is not None:
            message = (f'This model takes {self.img_size[0]} x {self.img_size[1]} pixels, not '
                       f'{x.shape[2]} x {x.shape[3]}: create it with img_size=..., or call set_input_size.')
            _assert(x.shape[2] == self.img_size[0], message)
            _assert(x.shape[3] == self.img_size[1], message)
        return self.pos_embed

    def _embed(self, x: Tensor) -> Tensor:
        """Tokenize, prepend the class token, add positions: [B, C, H, W] -> [B, N, D]."""
        positions = self._positions(x)
        x = self.tokenizer(x)
        if self.cls_token is not None and self.num_early_tokens:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if positions is not None:
            x = x + positions
        return self.pos_drop(x)

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None,
                              return_prefix_tokens: bool = False, norm: bool = False, stop_early: bool = False,
                              output_fmt: str = 'NCHW', intermediates_only: bool = False) -> Any:
        """Return the input of the first block (index 0) and the output of each block; the arguments are timm's."""
        take, last = feature_take_indices(len(self.blocks) + 1, indices)
        grid = self.tokenizer.grid_size(tuple(x.shape[2:]))
        x = self._embed(x)
        taken = [x] if 0 in take else []
        for i, block in enumerate(self.blocks[:last] if stop_early else self.blocks, start=1):
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            if i in take:
                taken.append(x)
        taken = [self.norm(y) if norm else y for y in taken]
        outputs = self._as_outputs(taken, [grid] * len(taken), return_prefix_tokens, output_fmt)
        return outputs if intermediates_only else (self._finish(x), outputs)

    def _as_outputs(self, taken: list[Tensor], grids: list[tuple[int, int]], return_prefix_tokens: bool,
                    output_fmt: str) -> list[Any]:
        """Convert intermediates [B, prefix + N, D] to the format that `forward_intermediates` returns."""
        if output_fmt not in ('NCHW', 'NLC'):
            raise ZooError(f"output_fmt is {output_fmt!r:.80}, expected 'NCHW' or 'NLC'.")
        prefix = [y[:, :self.num_early_tokens] for y in taken]
        taken = [y[:, self.num_early_tokens:] for y in taken]
        if output_fmt == 'NCHW':
            taken = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y, grid in zip(taken, grids, strict=True)]
        return list(zip(taken, prefix, strict=True)) if return_prefix_tokens and self.num_early_tokens else taken

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Drop the blocks after the last index and, if asked, the final norm and the head with its pooling."""
        take, last = feature_take_indices(len(self.blocks) + 1, indices)
        self.blocks = self.blocks[:last]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, '')
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self._finish(x)

    def _finish(self, x: Tensor) -> Tensor:
        """Turn the output of the last block into the final features."""
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.map_features and self.global_pool != '':
            x = x.flatten(1, 2)
        if self.attn_pool is not None:
            x = self.attn_pool(x)
        else:
            x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        return self.head_drop(x) if pre_logits else self.head(self.head_drop(x))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            step = slice_length(self, x, self._largest_activation())
            if step:
                return torch.cat([self.forward_head(self.forward_features(part)) for part in x.split(step)])
        return self.forward_head(self.forward_features(x))

    def _largest_activation(self) -> int:
        """Return the number of values in an image's largest activation, in the tokenizer or the blocks."""
        tokens = self.grid_size[0] * self.grid_size[1] + self.num_early_tokens
        return max(self.tokenizer.largest_map(self.img_size), tokens * self._largest_width(tokens))

    def _largest_width(self, tokens: int) -> int:
        """Return the values per token in the largest activation of the blocks: queries, keys and values."""
        return 3 * self.embed_dim

    def block_layers(self) -> list[Layer]:
        """Return the blocks, in order, with the places of their tokens on the image."""
        return place('blocks', self.blocks, self.grid_size, self.tokenizer.reduction, self.num_early_tokens)


def fit_positions(tensors: Mapping[str, Tensor], model: Any, source_size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Resize `pos_embed` to the grid of a TokenTransformer or of timm's VisionTransformer."""
    table = tensors.get('pos_embed')
    old = None if model.pos_embed is None else source_grid(table, model, source_size)
    if table is None or old is None:
        return dict(tensors)
    _, new, num_prefix_tokens = _layout(model)
    if old != new:
        _logger.info('Resized pos_embed from %d x %d to %d x %d tokens', *old, *new)
    return {**tensors, 'pos_embed': resize_table(table, old, new, num_prefix_tokens)}


def source_grid(table: Tensor | None, model: Any, source_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return rows and columns of a checkpoint's position table [1, prefix + N, D]; None if unknown.

    Without `source_size`, the checkpoint's image size, a table is taken to have the model's grid, or a square one.
    """
    if table is None or table.ndim != 3:
        return None
    grid_of, own, num_prefix_tokens = _layout(model)
    count = table.shape[1] - num_prefix_tokens
    side = math.isqrt(max(count, 0))
    known = [grid_of(source_size)] if source_size else []
    return next((grid for grid in [*known, own, (side, side)] if grid[0] * grid[1] == count), None)


def _layout(model: Any) -> tuple[Callable[[tuple[int, int]], tuple[int, int]], tuple[int, int], int]:
    """Return the function from an image size to a grid, the model's own grid, and the prefix rows of its table."""
    if isinstance(model, VisionTransformer):
        return model.patch_embed.dynamic_feat_size, model.patch_embed.grid_size, model.num_prefix_tokens
    return model.tokenizer.grid_size, model.grid_size, model.num_early_tokens
