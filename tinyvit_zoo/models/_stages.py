"""The base class of transformers in stages, which halve the map of tokens and widen it between stages."""
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import to_2tuple
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..errors import ZooError
from ._build import feature_take_indices
from ._tokens import Layer, TokenTransformer, place


class Stage(nn.Module):
    """Blocks at one resolution, with a pooling of the map before (`pool`) or after them (`downsample`)."""

    def __init__(
            self, blocks: list[nn.Module], pool: nn.Module | None = None, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.pool: Any = nn.Identity() if pool is None else pool
        self.blocks = nn.Sequential(*blocks)
        self.downsample: Any = nn.Identity() if downsample is None else downsample

    def forward_blocks(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.forward_blocks(self.pool(x)))


class StagedTransformer(TokenTransformer):
    """Stages in `stages_name` instead of blocks. A family defines `_grids`, `forward_features` and the fields below."""
    if TYPE_CHECKING:
        embed_dims: list[int] | tuple[int, ...]     # of each stage
        least_size: int                             # pixels a side that leave a token in the last stage
    default_out_indices: Any = (0, 1, 2)
    stages_name = 'stages'
    taken_from = ''             # the module whose output is the stage's feature, within the stage
    pooling = ('pool', 0)       # the module between two stages, and where `group_matcher` sorts it

    def _stages(self) -> Any:
        return getattr(self, self.stages_name)

    def _feature_info(self) -> list[dict[str, Any]]:
        """Describe the output of each stage."""
        return [dict(module=f'{self.stages_name}.{i}{self.taken_from}', num_chs=dim,
                     reduction=self.tokenizer.reduction * 2 ** i) for i, dim in enumerate(self.embed_dims)]

    def block_layers(self) -> list[Layer]:
        return [layer for i, (stage, grid) in enumerate(zip(self._stages(), self._grids(self.img_size), strict=True))
                for layer in place(f'{self.stages_name}.{i}.blocks', stage.blocks, grid,
                                   self.tokenizer.reduction * 2 ** i, self.num_early_tokens)]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stage = rf'^{self.stages_name}\.(\d+)'
        name, order = self.pooling
        fine = [(rf'{stage}\.{name}', (order,)), (rf'{stage}\.blocks\.(\d+)', None), (r'^norm', (99999,))]
        return dict(stem=r'^cls_token|^pos_embed|^tokenizer', blocks=stage if coarse else fine)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def _grids(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the rows and columns of each stage's map."""
        raise NotImplementedError

    def _check_size(self, img_size: tuple[int, int]) -> None:
        if min(img_size) < self.least_size:
            raise ZooError(f'A {img_size[0]} x {img_size[1]} image leaves no token in the last stage: this model needs '
                           f'at least {self.least_size} x {self.least_size} pixels.')

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        self._check_size(to_2tuple(img_size))
        super().set_input_size(img_size)

    def _first_map(self, x: Tensor) -> Tensor:
        """Return the input of the first stage."""
        return self._embed(x)

    def _run_stages(self, x: Tensor, indices: int | list[int] | None, norm: bool, stop_early: bool,
                    grids: Sequence[tuple[int, int]] = ()) -> tuple[Tensor, list[Tensor], list[int]]:
        """Return the final features, those of the stages at `indices`, and these indices counted from 0.

        `grids`: the maps that each stage makes of images of another size, where it pools tokens.
        """
        stages = self._stages()
        take, last = feature_take_indices(len(stages), indices)
        x, taken = self._first_map(x), []
        for i, stage in enumerate(stages[:last + 1] if stop_early else stages):
            x = stage.forward_blocks(stage.pool.on_grid(x, grids[i - 1]) if grids and i else stage.pool(x))
            if i in take:
                taken.append(self.norm(x) if norm and i == len(stages) - 1 else x)
            x = stage.downsample(x)
        return self.norm(x) if x.shape[-1] == self.num_features else x, taken, take  # no norm for an earlier stage

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Drop the stages after the last index, and with them the final norm and the head, which depend on them."""
        stages = self._stages()
        take, last = feature_take_indices(len(stages), indices)
        shorter = last + 1 < len(stages)
        setattr(self, self.stages_name, stages[:last + 1])
        self._end_at(last)
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, '')
        return take

    def _end_at(self, last: int) -> None:
        """Make the stage of this index the last one."""
        self.num_features = self.head_hidden_size = self.embed_dims[last]
