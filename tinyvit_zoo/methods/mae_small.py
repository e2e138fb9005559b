"""Masked autoencoding of small images by a small ViT (arXiv 2402.03752; no code was published).

Two things differ from MAE: the position tables of encoder and decoder are learned (small grids are too coarse for fixed
waves), and the visible patches are predicted too, weighted by alpha:

    loss = mean error of a masked patch + alpha * mean error of a visible one

The paper does not state alpha and the decoder's sizes: both are ours. The encoder keeps its positions and weights.

    encoder = timm.create_model('mae_vit_c10', num_classes=0)
    loss = SmallMaskedAutoencoder(encoder)(images)
"""
from typing import Any

import torch
from timm.layers import get_device_dtype
from torch import Tensor, nn

from ..recipes.ranges import FROM_0, FROM_1
from .masked import MaskedModel


class SmallMaskedAutoencoder(MaskedModel):
    """See MaskedModel for the other arguments.

    Args:
        decoder_dim: None: half of the encoder's width.
        decoder_heads: None: of 32 channels each, or a little more.
        visible_weight: alpha, the weight of the error on visible patches.
    """

    def __init__(self, encoder: Any, decoder_dim: int | None = None, decoder_depth: int = 1,
                 decoder_heads: int | None = None, mlp_ratio: float = 2., mask_ratio: float = 0.75,
                 visible_weight: float = 0.1, normalize_targets: bool = False) -> None:
        FROM_1.check(decoder_dim=decoder_dim, decoder_heads=decoder_heads)
        FROM_0.check(visible_weight=visible_weight)
        dim = decoder_dim or encoder.num_features // 2
        heads = decoder_heads or next(n for n in range(max(1, dim // 32), 0, -1) if dim % n == 0)
        super().__init__(encoder, dim, decoder_depth, heads, mlp_ratio, mask_ratio, normalize_targets)
        self.visible_weight = visible_weight
        length = self.prefix + self.num_patches
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, length, dim, **get_device_dtype(encoder)))
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise the decoder: Xavier-uniform linear layers, biases 0, tokens and positions of .02."""
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.decoder_pos_embed, std=0.02)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'mask_token', 'decoder_pos_embed', *(f'encoder.{name}' for name in self.encoder.no_weight_decay())}

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of predictions [B, N, P * P * C] by a mask [B, N], 1 where masked."""
        errors, visible = self.errors(images, prediction), 1 - mask
        masked = (errors * mask).sum() / mask.sum()
        return masked + self.visible_weight * (errors * visible).sum() / visible.sum()
