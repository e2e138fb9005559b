"""Straightforward implementations of the models: the baseline of `benchmark.py models`.

Attention as two products and a softmax, masks built on every call, channels first, ReLU before pooling, torch's own
dropout: the same definition and numbers without any optimization. The compact transformers are written out whole
(`PlainCompact`); other families are copies of ours with the modules of `PLAIN` in place of ours.
"""
from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models.cait import TalkingHeadAttn
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.layers import LocalityAttention, ShiftedMerging, ShiftedPatchTokenization, WindowAttention
from tinyvit_zoo.models.compact import CompactTransformer
from tinyvit_zoo.models.sl_cait import MixedAttention
from tinyvit_zoo.models.sl_t2t import TokenAttention
from tinyvit_zoo.models.ssl_small import TalkingHeads


class PlainTokenizer(nn.Module):
    def __init__(self, convs: nn.ModuleList, pooled: bool) -> None:
        super().__init__()
        self.convs, self.pooled = convs, pooled

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
            if self.pooled:
                x = F.max_pool2d(F.relu(x), 3, 2, 1)
        return x.flatten(2).transpose(1, 2)


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int, attn_drop: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attn = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, attn_drop: float, drop_path: float) -> None:
        super().__init__()
        self.pre_norm, self.norm1 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = PlainAttention(dim, heads, attn_drop)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop_path = drop_path

    def _drop_path(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x / keep * torch.rand(len(x), 1, 1, device=x.device).lt(keep)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop_path(self.self_attn(self.pre_norm(x)))
        x = self.norm1(x)
        return x + self._drop_path(self.linear2(F.gelu(self.linear1(x))))


class PlainCompact(nn.Module):
    """The same model as `ours`, plainly, with a copy of its weights."""

    def __init__(self, ours: CompactTransformer) -> None:
        super().__init__()
        dim = ours.embed_dim
        convs = [nn.Conv2d(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, bias=c.bias is not None)
                 for c in ours.tokenizer.convs]
        self.tokenizer = PlainTokenizer(nn.ModuleList(convs), ours.tokenizer.pooled)
        self.cls_token = None if ours.cls_token is None else nn.Parameter(ours.cls_token.detach().clone())
        self.pos_embed = None if ours.pos_embed is None else nn.Parameter(ours.pos_embed.detach().clone())
        self.blocks = nn.ModuleList([PlainBlock(
            dim, b.self_attn.num_heads, b.linear1.out_features, b.self_attn.attn_drop.p,
            getattr(b.drop_path1, 'drop_prob', 0.)) for b in ours.blocks])
        self.norm = nn.LayerNorm(dim)
        self.attn_pool = None
        if ours.attn_pool is not None:
            self.attn_pool = nn.Module()
            self.attn_pool.score = nn.Linear(dim, 1)
        self.head = nn.Linear(dim, ours.num_classes)
        self.load_state_dict(ours.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokenizer(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x if self.pos_embed is None else x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.attn_pool is None:
            return self.head(x[:, 0])
        weights = self.attn_pool.score(x).softmax(dim=1)
        return self.head((weights.transpose(1, 2) @ x).squeeze(1))


class PlainLocalityAttention(nn.Module):
    """Uses the parameters of ours."""

    def __init__(self, ours: LocalityAttention) -> None:
        super().__init__()
        self.heads, self.head_dim, self.scale = ours.num_heads, ours.head_dim, ours.scale
        self.temperature, self.qkv, self.proj = ours.temperature, ours.qkv, ours.proj
        self.attn_drop = ours.attn_drop

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, and the values of the first head."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        logits = q @ k.transpose(-2, -1)
        if self.temperature is None:
            logits = logits * self.scale
        else:
            logits = logits * self.temperature[:, None, None]
            diagonal = torch.eye(N, dtype=torch.bool, device=x.device)
            logits = logits.masked_fill(diagonal, -torch.finfo(logits.dtype).max)
        attn = self.attn_drop(logits.softmax(dim=-1))
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, -1)), v[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]


class PlainTokenAttention(PlainLocalityAttention):
    """T2T's attention, which adds its values."""

    def forward(self, x: Tensor) -> Tensor:
        out, values = self.attend(x)
        return out + values


class PlainMixedAttention(nn.Module):
    """CaiT's attention with the parameters of ours; heads are mixed by einsum."""

    def __init__(self, ours: MixedAttention) -> None:
        super().__init__()
        self.heads, self.head_dim, self.mask = ours.num_heads, ours.head_dim, ours.mask
        self.temperature, self.mix_pre, self.mix_post = ours.temperature, ours.mix_pre, ours.mix_post
        self.q, self.kv, self.proj, self.attn_drop = ours.q, ours.kv, ours.proj, ours.attn_drop

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (t.reshape(*t.shape[:2], self.heads, self.head_dim).transpose(1, 2)
                   for t in (self.q(x), *self.kv(context).chunk(2, dim=-1)))
        scale = self.head_dim ** -0.5 if self.temperature is None else self.temperature[:, None, None]
        logits = torch.einsum('bhij,hg->bgij', (q @ k.transpose(-2, -1)) * scale, self.mix_pre)
        if self.mask == 'paper':
            diagonal = torch.eye(logits.shape[-1], dtype=torch.bool, device=x.device)
            logits = logits.masked_fill(diagonal, -torch.finfo(logits.dtype).max)
        attn = torch.einsum('bhij,hg->bgij', self.attn_drop(logits.softmax(dim=-1)), self.mix_post)
        return self.proj((attn @ v).transpose(1, 2).reshape(*x.shape[:2], -1))


def plain_talking_heads(ours: TalkingHeads) -> TalkingHeadAttn:
    """Return timm's, which permutes the heads to mix them."""
    plain = TalkingHeadAttn(ours.qkv.in_features, ours.num_heads, qkv_bias=ours.qkv.bias is not None)
    plain.load_state_dict(ours.state_dict())
    return plain


class PlainShiftedPatches(nn.Module):
    """Uses the parameters of ours. A shift pads one side and crops the other."""

    def __init__(self, ours: ShiftedPatchTokenization) -> None:
        super().__init__()
        self.size, self.norm, self.proj = ours.patch_size, ours.norm, ours.proj

    def forward(self, x: Tensor) -> Tensor:
        s, p = self.size // 2, self.size
        shifts = [(s, -s, s, -s), (-s, s, s, -s), (s, -s, -s, s), (-s, s, -s, s)]
        x = torch.cat([x, *(F.pad(x, shift) for shift in shifts)], dim=1)
        B, C, H, W = x.shape
        x = x[:, :, :H // p * p, :W // p * p].reshape(B, C, H // p, p, W // p, p)
        return self.proj(self.norm(x.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, p * p * C)))


class PlainShiftedMerging(PlainShiftedPatches):
    """On maps [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).unflatten(1, (x.shape[1] // 2, x.shape[2] // 2))


class PlainWindowAttention(nn.Module):
    """Uses the parameters of ours: shift, cut into windows, attend, and reverse.

    For maps that are multiples of a window, as Swin's own code.
    """

    def __init__(self, ours: WindowAttention) -> None:
        super().__init__()
        self.heads, self.head_dim, self.window, self.shift = ours.num_heads, ours.head_dim, ours.window_size, ours.shift
        self.temperature, self.qkv, self.proj = ours.temperature, ours.qkv, ours.proj
        self.table = ours.relative_position_bias_table
        place = torch.arange(self.window)
        offset = place[:, None] - place + self.window - 1
        index = offset[:, None, :, None] * (2 * self.window - 1) + offset[None, :, None, :]
        self.register_buffer('index', index.flatten())

    def _cut(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        x = x.view(B, H // self.window, self.window, W // self.window, self.window, C)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window ** 2, C)

    def _mask(self, H: int, W: int, shift: int, device: torch.device) -> Tensor:
        row, col = torch.arange(H, device=device)[:, None] >= H - shift, torch.arange(W, device=device) >= W - shift
        side = self._cut((2 * row.long() + col.long())[None, :, :, None])
        return (side != side.transpose(1, 2)).float() * -100

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        area, shift = self.window ** 2, self.shift if min(H, W) > self.window else 0
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        x = self._cut(x)
        q, k, v = self.qkv(x).reshape(-1, area, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        logits = q @ k.transpose(-2, -1)
        logits = logits * (self.head_dim ** -0.5 if self.temperature is None else self.temperature[:, None, None])
        logits = logits + self.table[self.index].view(area, area, self.heads).permute(2, 0, 1)
        if self.temperature is not None:
            diagonal = torch.eye(area, dtype=torch.bool, device=x.device)
            logits = logits.masked_fill(diagonal, -torch.finfo(logits.dtype).max / 2)
        if shift:
            mask = self._mask(H, W, shift, x.device)
            logits = (logits.view(B, len(mask), self.heads, area, area) + mask[:, None]).flatten(0, 1)
        x = self.proj((logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, area, C))
        x = x.view(B, H // self.window, W // self.window, self.window, self.window, C).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(B, H, W, C)
        return torch.roll(x, (shift, shift), (1, 2)) if shift else x


PLAIN: dict[type, Callable] = {
    LocalityAttention: PlainLocalityAttention,
    MixedAttention: PlainMixedAttention,
    ShiftedPatchTokenization: PlainShiftedPatches,
    TokenAttention: PlainTokenAttention,
    ShiftedMerging: PlainShiftedMerging,
    WindowAttention: PlainWindowAttention,
    TalkingHeads: plain_talking_heads,
}


class PlainCopy(nn.Module):
    """A copy of `ours` with plain modules, which runs a batch whole."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(ours)
        for name, module in list(self.model.named_modules()):
            if type(module) in PLAIN:
                self.model.set_submodule(name, PLAIN[type(module)](module))

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(x))


def plain(ours: nn.Module) -> nn.Module:
    """Return a plain implementation of `ours` with a copy of its weights; ZooError if there is none."""
    if isinstance(ours, CompactTransformer):
        return PlainCompact(ours)
    if not any(type(module) in PLAIN for module in ours.modules()):
        raise ZooError(f'There is no plain implementation of {type(ours).__name__} to measure against.')
    return PlainCopy(ours)
