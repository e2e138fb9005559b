"""CaiT for small data: plain, or with shifted patches (`spt`) and locality attention (`lsa`).

Paper: Vision Transformer for Small-Size Datasets, https://arxiv.org/abs/2112.13492 (Lee, Lee and Song, 2021)
Authors' code: https://github.com/aanna0701/SPT_LSA_ViT (no licence, no weights published)

CaiT (https://arxiv.org/abs/2103.17239) is deep: 24 blocks for the patches, then 2 for a class token that is added after
them. LayerScale multiplies the output of each branch by a small learned vector. Heads are mixed: the logits of each are
a weighted sum of the logits of all, and so are its attention weights.

The mixing rules out `scaled_dot_product_attention`. With the heads first, [H, B, N, N], it is a single product with an
[H, H] matrix, without a transpose, and the temperature scales that matrix.

Where we differ from the authors: their locality attention sets a token's logit with itself to -1e-9 before the mixing,
which masks nothing (the logit becomes 0). Ours masks after the mixing, whose negative weights would turn a very low
logit into a very high one. `lsa_mask='authors'` does as they do.
"""
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional, Tuple

import torch
from timm.layers import LayerScale
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import Block, PatchTokenization, ShiftedPatchTokenization, diagonal_mask, init_xavier
from ..weights import unwrap
from ._build import adapt_linear_stem, renamed
from ._tokens import Layer, TokenTransformer, fit_positions, place
from .sl_vit import AUTHORS_NAMES, register_spt_lsa

torch.fx.wrap('diagonal_mask')  # not traced: it branches on the type


def mix_heads(x: Tensor, mix: Tensor) -> Tensor:
    """Mix heads [H, ...] -> [H, ...]: each is the sum of all, weighted by its column of `mix`."""
    return (mix.t().to(x.dtype) @ x.flatten(1)).view_as(x)


class MixedAttention(nn.Module):
    """Mix heads before and after the softmax; `mask` of the diagonal: '', 'paper' or 'authors' (see above)."""
    mask: torch.jit.Final[str]
    mixes_heads = True

    def __init__(self, dim: int, num_heads: int, head_dim: int, lsa: bool, mask: str, attn_drop: float,
                 proj_drop: float, **dd: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.mask = mask
        self.temperature: Optional[nn.Parameter] = nn.Parameter(torch.empty(num_heads, **dd)) if lsa else None
        self.mix_pre = nn.Parameter(torch.empty(num_heads, num_heads, **dd))  # [from, to]
        self.mix_post = nn.Parameter(torch.empty(num_heads, num_heads, **dd))
        self.q = nn.Linear(dim, num_heads * head_dim, bias=False, **dd)
        self.kv = nn.Linear(dim, 2 * num_heads * head_dim, bias=False, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * head_dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_mixing()

    def reset_mixing(self) -> None:
        nn.init.normal_(self.mix_pre)
        nn.init.normal_(self.mix_post)
        if self.temperature is not None:
            nn.init.constant_(self.temperature, self.head_dim ** -0.5)

    def _project(self, x: Tensor, context: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return queries [H, B, N, D], keys and values [H, B, M, D]."""
        q = self.q(x).unflatten(2, (self.num_heads, self.head_dim)).permute(2, 0, 1, 3)
        k, v = self.kv(context).unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 3, 0, 1, 4).unbind(0)
        return q, k, v

    def logits(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the input of the softmax [B, H, N, M]."""
        q, k, _ = self._project(x, context)
        return self._mixed_logits(q @ k.transpose(-2, -1)).transpose(0, 1)

    def _mixed_logits(self, logits: Tensor) -> Tensor:
        """Scale, mix and mask products of queries and keys [H, B, N, M]."""
        if self.temperature is None:
            return mix_heads(logits, self.mix_pre * self.head_dim ** -0.5)
        if self.mask == 'authors':
            itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
            logits = logits * self.temperature[:, None, None, None].to(logits.dtype)
            return mix_heads(logits.masked_fill(itself, -1e-9), self.mix_pre)
        logits = mix_heads(logits, self.mix_pre * self.temperature[:, None])
        return logits + diagonal_mask(logits) if self.mask == 'paper' else logits

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from x [B, N, C] to context [B, M, C]."""
        q, k, v = self._project(x, context)
        attn = self._mixed_logits(q @ k.transpose(-2, -1)).softmax(dim=-1)
        attn = mix_heads(self.attn_drop(attn), self.mix_post)
        x = (attn.to(v.dtype) @ v).permute(1, 2, 0, 3).flatten(2)
        return self.proj_drop(self.proj(x))


class MixedBlock(Block):
    """Pre-norm block of the patches, with LayerScale on both branches."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path1(self.ls1(self.attn(y, y)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ClassBlock(MixedBlock):
    """Update the class token, the first one: it attends to the patches without their norm, not to itself."""

    def forward(self, x: Tensor) -> Tensor:
        token, patches = x[:, :1], x[:, 1:]
        token = token + self.drop_path1(self.ls1(self.attn(self.norm1(token), patches)))
        token = token + self.drop_path2(self.ls2(self.mlp(self.norm2(token))))
        return torch.cat([token, patches], dim=1)


class LateClassToken(TokenTransformer):
    """Blocks for the patches, then `class_blocks`, which take all tokens and update only the class token in front."""
    if TYPE_CHECKING:
        class_blocks: nn.Sequential

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(stem=r'^cls_token|^pos_embed|^tokenizer', blocks=r'^blocks\.(\d+)',
                    class_blocks=[(r'^class_blocks\.(\d+)', None), (r'^norm', (99999,))])

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Drop the class token and its blocks with the head: intermediate features are those of the patches."""
        if prune_head:
            self.cls_token, self.class_blocks = None, nn.Sequential()
            self.num_prefix_tokens = 0
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def block_layers(self) -> list[Layer]:
        grid, stride = self.grid_size, self.tokenizer.reduction
        return super().block_layers() + place('class_blocks', self.class_blocks, grid, stride, 1, class_only=True)

    def _finish(self, x: Tensor) -> Tensor:
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint_seq(self.class_blocks, x)
            else:
                x = self.class_blocks(x)
        return self.norm(x)


class LocalCaiT(LateClassToken):
    """CaiT, by default with shifted patches and locality attention.

    Args (TokenTransformer has the rest):
        num_heads, head_dim: their product need not be `embed_dim`.
        lsa_mask: 'paper' (no patch attends to itself) or 'authors' (see the module's docstring).
        drop_path_rate: the authors' default, the same in every block.
    """
    init_table = staticmethod(nn.init.normal_)

    @staticmethod
    def init_module(module: nn.Module) -> None:
        init_xavier(module)
        if isinstance(module, LayerScale):
            module.reset_parameters()
        elif isinstance(module, MixedAttention):
            module.reset_mixing()

    def __init__(self, img_size: int | tuple[int, int] = 32, in_chans: int = 3, num_classes: int = 10,
                 global_pool: str = 'token', patch_size: int = 4, embed_dim: int = 192, depth: int = 24,
                 class_depth: int = 2, num_heads: int = 4, head_dim: int = 64, mlp_hidden: int = 384, spt: bool = True,
                 lsa: bool = True, lsa_mask: str = 'paper', drop_rate: float = 0., pos_drop_rate: float = 0.,
                 proj_drop_rate: float = 0., attn_drop_rate: float = 0., drop_path_rate: float = 0.1,
                 device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        if lsa_mask not in ('paper', 'authors'):
            raise ZooError(f"lsa_mask is {lsa_mask!r:.80}, expected 'paper' or 'authors'.")
        super().__init__(img_size, in_chans, embed_dim, num_prefix_tokens=1, late_class_token=True)
        tokenizer = (ShiftedPatchTokenization if spt else PatchTokenization)(in_chans, embed_dim, patch_size, **dd)
        self._init_tokens(tokenizer, embed_dim, pos_drop_rate, **dd)

        def attention(mask: str) -> MixedAttention:
            return MixedAttention(embed_dim, num_heads, head_dim, lsa, mask, attn_drop_rate, proj_drop_rate, **dd)
        self.num_heads, self.inner_dim = num_heads, num_heads * head_dim
        self.blocks = nn.Sequential(*[
            MixedBlock(embed_dim, attention(lsa_mask if lsa else ''), mlp_hidden, proj_drop_rate, drop_path_rate,
                       0.1 if i < 18 else 1e-5 if i < 24 else 1e-6, **dd)  # LayerScale: the deeper, the smaller
            for i in range(depth)])
        self.class_blocks = nn.Sequential(*[
            ClassBlock(embed_dim, attention(''), mlp_hidden, proj_drop_rate, drop_path_rate, 0.1, **dd)
            for _ in range(class_depth)])
        self._init_end(num_classes, global_pool, drop_rate, **dd)

    def _largest_width(self, tokens: int) -> int:
        """Return the width of keys and values, or of the logits of all heads."""
        return max(2 * self.inner_dim, self.num_heads * tokens)


_AUTHORS_NAMES = (
    (r'^patch_transformer\.layers\.', 'blocks.'),
    (r'^cls_transformer\.layers\.', 'class_blocks.'),
    (r'(blocks\.\d+)\.0\.scale$', r'\1.ls1.gamma'),
    (r'(blocks\.\d+)\.1\.scale$', r'\1.ls2.gamma'),
    (r'(blocks\.\d+\.[01])\.fn\.', r'\1.'),
    (r'(blocks\.\d+)\.0\.fn\.mix_heads_(\w+)_attn$', r'\1.attn.mix_\2'),
    (r'(blocks\.\d+)\.0\.fn\.to_(q|kv)\.', r'\1.attn.\2.'),
    *AUTHORS_NAMES[1:],
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: LocalCaiT,
                         source_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Rename the authors' tensors, or ours, bare or wrapped, and fit them to the size and channels of `model`."""
    tensors = renamed(unwrap(state_dict), _AUTHORS_NAMES)
    tensors = {name: tensor.flatten() if name.endswith('.gamma') else tensor for name, tensor in tensors.items()}
    return adapt_linear_stem(fit_positions(tensors, model, source_size), model)


register_spt_lsa(__name__, LocalCaiT, checkpoint_filter_fn, large={'patch_size': 8})
