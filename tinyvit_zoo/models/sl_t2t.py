"""T2T-ViT for small data: plain, or with shifted pixels (`spt`) and locality attention (`lsa`).

Paper: Vision Transformer for Small-Size Datasets, https://arxiv.org/abs/2112.13492 (Lee, Lee and Song, 2021)
Authors' code: https://github.com/aanna0701/SPT_LSA_ViT (no licence, no weights published; written from the paper)

T2T-ViT (https://arxiv.org/abs/2101.11986) makes its tokens in steps. A step takes the 3x3 neighbourhood of each second
pixel as a token ("unfold"), passes them through a transformer of one head and 64 channels, and puts them back in their
places as the next map. The last unfold goes through a Linear to the width of the body. 32 pixels take two unfolds, 64
(`_64`) three: 8x8 tokens. An odd map is rounded up. With `spt` the image is stacked with itself shifted by one pixel.

As in the authors' code, a body block adds the normalised tokens to its attention branch, and a token transformer scales
its logits by the width of its input, not of its head.

Where we differ from the authors: no LayerNorm that is never used; the sine positions follow the image size.
"""
import itertools
from collections.abc import Mapping
from typing import Any, Tuple

from timm.layers import Mlp, calculate_drop_path_rates
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ZooError
from ..layers import LocalityAttention, LocalityBlock, init_trunc_normal, shift_diagonally
from ..weights import unwrap
from ._build import renamed
from ._tokens import Layer, TokenTransformer, place
from .sl_vit import register_spt_lsa


class TokenAttention(LocalityAttention):
    """Attention of one head to narrower tokens; the residual is that of its values, as narrow."""

    def __init__(self, in_dim: int, dim: int, lsa: bool, **dd: Any) -> None:
        super().__init__(in_dim, 1, dim, lsa, out_dim=dim, scale=in_dim ** -0.5, **dd)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.project(x)
        return qkv[:, :, 2, 0] + self.proj(self.attend(qkv))


class TokenBlock(nn.Module):
    """A token transformer [B, N, in_dim] -> [B, N, dim]."""

    def __init__(self, in_dim: int, dim: int, lsa: bool, **dd: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim, **dd)
        self.attn = TokenAttention(in_dim, dim, lsa, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Image to tokens [B, C, H, W] -> [B, N, D] by `num_unfolds` unfolds, a token transformer between each two."""

    def __init__(self, in_chans: int, embed_dim: int, num_unfolds: int, token_dim: int, spt: bool, lsa: bool,
                 **dd: Any) -> None:
        super().__init__()
        self.spt = spt
        self.reduction = 2 ** num_unfolds
        self.widths = [5 * in_chans if spt else in_chans, *[token_dim] * (num_unfolds - 1)]
        self.steps = nn.ModuleList([TokenBlock(9 * width, token_dim, lsa, **dd) for width in self.widths[:-1]])
        self.proj = nn.Linear(9 * self.widths[-1], embed_dim, **dd)

    def grid_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return rows and columns of tokens for an image size."""
        return -(-img_size[0] // self.reduction), -(-img_size[1] // self.reduction)

    def largest_map(self, img_size: Tuple[int, int]) -> int:
        """Return the number of values in the largest activation: unfolded, or as queries, keys and values."""
        sizes = [self.widths[0] * img_size[0] * img_size[1]]
        for i, width in enumerate(self.widths, start=1):
            tokens = -(-img_size[0] // 2 ** i) * -(-img_size[1] // 2 ** i)
            sizes.append(tokens * max(9 * width, 3 * self.widths[-1]))
        return max(sizes)

    def forward(self, x: Tensor) -> Tensor:
        if self.spt:
            x = shift_diagonally(x, 1)
        for step in self.steps:
            height, width = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
            x = step(unfold(x)).transpose(1, 2).unflatten(2, (height, width))
        return self.proj(unfold(x))


def unfold(x: Tensor) -> Tensor:
    """Cut 3x3 neighbourhoods at every second pixel [B, C, H, W] -> [B, N, 9C], zeros around the map."""
    return F.unfold(x, 3, stride=2, padding=1).transpose(1, 2)


class Block(LocalityBlock):
    """Pre-norm block whose attention branch holds the normalised tokens too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path1(y + self.attn(y))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class LocalT2T(TokenTransformer):
    """T2T-ViT; `lsa` acts in the token transformers too; `drop_path_rate` grows linearly from 0 over the body."""
    init_module = staticmethod(init_trunc_normal)
    tables = ('cls_token', 'pos_embed')

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'token', num_unfolds: int = 2, token_dim: int = 64, embed_dim: int = 256,
                 depth: int = 12, num_heads: int = 4, mlp_ratio: float = 2., spt: bool = True, lsa: bool = True,
                 drop_rate: float = 0., pos_drop_rate: float = 0., proj_drop_rate: float = 0.,
                 attn_drop_rate: float = 0., drop_path_rate: float = 0.1, device: Any = None,
                 dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(img_size, in_chans, embed_dim, num_prefix_tokens=1)
        tokenizer = TokensToToken(in_chans, embed_dim, num_unfolds, token_dim, spt, lsa, **dd)
        self._init_tokens(tokenizer, embed_dim, pos_drop_rate, pos_embed='sine', **dd)
        self.blocks = nn.Sequential(*[
            Block(embed_dim, num_heads, mlp_ratio, lsa, attn_drop_rate, proj_drop_rate, rate, **dd)
            for rate in calculate_drop_path_rates(drop_path_rate, depth)])
        self._init_end(num_classes, global_pool, drop_rate, **dd)

    def block_layers(self) -> list[Layer]:
        """Include the token transformers, on larger maps."""
        height, width = self.img_size
        steps = [place('tokenizer.steps', [step], (-(-height // half), -(-width // half)), half, 0, first=i)
                 for i, step in enumerate(self.tokenizer.steps) for half in [2 << i]]
        return [*itertools.chain(*steps), *super().block_layers()]


_AUTHORS_NAMES = (
    (r'^tokens_to_token\.attention(\d+)\.', lambda match: f'tokenizer.steps.{int(match[1]) - 1}.'),
    (r'^tokens_to_token\.project\.', 'tokenizer.proj.'),
    (r'\.attn\.scale$', '.attn.temperature'),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: LocalT2T,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Rename the authors' tensors, or ours, bare or wrapped; the sine table is the model's.

    Another number of channels is refused: the first LayerNorm's bias differs by channel, and the Linear after it has no
    bias to absorb that.
    """
    unused = ('tokens_to_token.norm.weight', 'tokens_to_token.norm.bias')
    tensors = {name: tensor for name, tensor in unwrap(state_dict).items() if name not in unused}
    tensors = {**renamed(tensors, _AUTHORS_NAMES), 'pos_embed': model.get_buffer('pos_embed')}
    weight = tensors.get('tokenizer.steps.0.attn.qkv.weight')
    chans = getattr(model, 'pretrained_cfg', {}).get('input_size', (model.in_chans,))[0]
    if weight is not None and model.in_chans != chans and weight.shape[-1] != 9 * model.tokenizer.widths[0]:
        raise ZooError(f'T2T weights for {chans} channels do not fit in_chans={model.in_chans}: create the model with '
                       f'in_chans={chans} and convert the images (repeat a single channel).')
    return tensors


register_spt_lsa(
    __name__, LocalT2T, checkpoint_filter_fn, large={'num_unfolds': 3}, first_conv='tokenizer.steps.0.attn.qkv')
