"""Masked autoencoding of the lightweight ViTs, also with distillation (arXiv 2205.14443, "MAE-Lite").

- MAE: fixed sine-cosine position tables; the loss is the squared error on the masked patches, pixels normalized by
  patch.
- D-MAE: adds the squared distance of the attention logits in the last blocks of student and a pre-trained teacher.
- D2-MAE: the decoder reads an inner block; the blocks after it, and an additional one of queries and keys alone, learn
  from the teacher.

    encoder = timm.create_model('mae_lite_vit_tiny', num_classes=0, global_pool='token')
    loss = MaskedAutoencoder(encoder)(images)                                   # MAE
    loss = DistilledAutoencoder(encoder, teacher)(images)                       # D-MAE
    loss = DistilledAutoencoder(encoder, teacher, decoder_block=8)(images)      # D2-MAE
"""
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_device_dtype
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import sincos2d_table
from ..models import encode, record
from ..recipes.ranges import COUNT, FROM_0
from ..weights import unwrap
from .masked import MaskedModel, patch_grid


class MaskedAutoencoder(MaskedModel):
    """MAE with the paper's settings for ViT-Tiny (ViT-Small: `decoder_dim=192, decoder_heads=6`); see MaskedModel.

    It sets the initial values and the position table of the encoder. Decoder tensors have the authors' names.
    """

    def __init__(self, encoder: Any, decoder_dim: int = 96, decoder_depth: int = 1, decoder_heads: int = 3,
                 mlp_ratio: float = 4., mask_ratio: float = 0.75, normalize_targets: bool = True) -> None:
        super().__init__(encoder, decoder_dim, decoder_depth, decoder_heads, mlp_ratio, mask_ratio, normalize_targets)
        if not isinstance(encoder.pos_embed, nn.Parameter):
            raise ZooError(f'{type(encoder).__name__} has fixed positions: use mae_small, or learned positions.')
        length = self.prefix + self.num_patches
        self.register_buffer('decoder_pos_embed', torch.empty(1, length, decoder_dim, **get_device_dtype(encoder)))
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise linear layers and patches xavier-uniform, biases 0, tokens of .02, and the position tables."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.encoder.cls_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        with torch.no_grad():
            for table in (self.encoder.pos_embed, self.decoder_pos_embed):
                table.copy_(sincos2d_table(
                    self.grid_size, table.shape[2], self.prefix, device=table.device, dtype=table.dtype))
        self.encoder.pos_embed.requires_grad_(False)

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Return the mean squared error of the masked pixels."""
        return (self.errors(images, prediction) * mask).sum() / mask.sum()


class DistilledAutoencoder(MaskedAutoencoder):
    """D-MAE and D2-MAE. See MaskedModel for the other arguments.

    Args:
        encoder: the student.
        teacher: a plain model with as many patches, pre-trained by MAE. It gets no gradients, is not part of the
            module and its checkpoints, and stays in eval mode on its device.
        decoder_block: how many blocks come before the decoder (D2-MAE); 0: all (D-MAE).
        weight: of the distillation in the loss.
    """

    def __init__(self, encoder: Any, teacher: Any, decoder_block: int = 0, weight: float = 1., decoder_dim: int = 96,
                 decoder_depth: int = 1, decoder_heads: int = 3, mlp_ratio: float = 4., mask_ratio: float = 0.75,
                 normalize_targets: bool = True) -> None:
        COUNT.check(decoder_block=decoder_block)
        FROM_0.check(weight=weight)
        super().__init__(encoder, decoder_dim, decoder_depth, decoder_heads, mlp_ratio, mask_ratio, normalize_targets)
        both = [(model.num_prefix_tokens, patch_grid(model)[1]) for model in (encoder, teacher)]
        if both[0] != both[1]:
            student, other = (f'{prefix} + {rows} x {cols}' for prefix, (rows, cols) in both)
            raise ZooError(f'The student has {student} tokens, but its teacher {other}: their attention cannot be '
                           f'compared. Use another teacher or image size.')
        if not 0 <= decoder_block < len(encoder.blocks):
            raise ZooError(f'decoder_block is {decoder_block}, expected 0 (none) to {len(encoder.blocks) - 1}.')
        dd = get_device_dtype(encoder)
        self._teacher = (teacher.requires_grad_(False).eval(),)
        self.decoder_block, self.weight = decoder_block, weight
        heads = _num_heads(encoder)
        self.attn_adapter = nn.Conv2d(heads, _num_heads(teacher), 1, bias=False, **dd)
        if decoder_block:
            self.inner_norm = nn.LayerNorm(encoder.embed_dim, eps=1e-6, **dd)
            self.next_attention = QueriesAndKeys(encoder.embed_dim, heads, **dd)
            encoder.norm.requires_grad_(False)  # unused: the decoder has `inner_norm`

    @property
    def distilled(self) -> Any:
        return self._teacher[0]     # no submodule: it is not part of the state

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        keep, mask = self.masked(images, noise)
        seen = self.seen(images, mask)
        tokens, logits = self.look(seen, keep)
        distance = F.mse_loss(self.attn_adapter(logits), self.taught(seen, keep))
        return self.loss(images, self.decode(tokens, keep), mask) + self.weight * distance

    def look(self, images: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's input [B, 1 + K, D] and the student's attention logits [B, H, 1 + K, 1 + K]."""
        if not self.decoder_block:
            with record(self.encoder, logits=[-1]) as own:
                return encode(self.encoder, images, keep), own.logits[-1]
        inner = self.decoder_block - 1
        with record(self.encoder, outputs=[inner, -1]) as own:
            encode(self.encoder, images, keep)
        return self.inner_norm(own.outputs[inner]), self.next_attention(own.outputs[-1])

    @torch.no_grad()
    def taught(self, images: Tensor, keep: Tensor) -> Tensor:
        """Return the teacher's attention logits in its last block."""
        teacher = self.distilled
        with record(teacher, logits=[-1]) as recorded:
            encode(teacher, images, keep)
        return recorded.logits[-1]

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        keep, mask = self.masked(images, noise)
        return self.decode(self.look(self.seen(images, mask), keep)[0], keep), mask


class QueriesAndKeys(nn.Module):
    """Compute the attention logits of one more block, [B, N, D] -> [B, H, N, N]."""

    def __init__(self, dim: int, num_heads: int, **dd: Any) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.qk = nn.Linear(dim, 2 * dim, **dd)
        nn.init.xavier_uniform_(self.qk.weight)
        nn.init.zeros_(self.qk.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(self.norm(x)).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return (q * self.scale) @ k.transpose(-2, -1)


def _num_heads(model: Any) -> int:
    block = model.blocks[-1]
    return int((getattr(block, 'attn', None) or block.self_attn).num_heads)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: MaskedAutoencoder) -> dict[str, Tensor]:
    """Rename tensors of the authors' or our pre-training, bare or wrapped; fixed position tables may be missing."""
    decoder = ('mask_token', 'decoder_', 'encoder.')
    tensors = {name if name.startswith(decoder) else f'encoder.{name}': tensor
               for name, tensor in unwrap(state_dict).items()}
    return {**{name: model.state_dict()[name] for name in ('encoder.pos_embed', 'decoder_pos_embed')}, **tensors}
