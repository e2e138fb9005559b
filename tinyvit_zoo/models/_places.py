"""Places of the tokens of a model's blocks on the image."""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from timm.layers import to_2tuple
from timm.models import VisionTransformer
from timm.models.cait import Cait, TalkingHeadAttn
from torch import nn


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


def place(
        name: str, blocks: Iterable[nn.Module], grid: tuple[int, int], stride: Any, prefix: int, first: int = 0,
        class_only: bool = False,
) -> list[Layer]:
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
