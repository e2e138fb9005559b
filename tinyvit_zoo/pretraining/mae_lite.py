"""Masked autoencoding of the lightweight ViTs (arXiv 2205.14443, after MAE, arXiv 2111.06377).

Three quarters of an image's patches are left out. The encoder sees the others, with their positions. A small decoder
then gets all patches in their places, those that were left out as one learned mask token, and predicts the pixels of
each. The loss is the squared error on the patches that were left out, against pixels normalised patch by patch.

    encoder = timm.create_model('mae_lite_vit_tiny', num_classes=0, global_pool='token')
    loss, prediction, mask = MaskedAutoencoder(encoder)(images)
"""
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import get_device_dtype
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import cut_patches, sincos2d_table
from ..models import encode
from ..weights import unwrap

__all__ = ['MaskedAutoencoder', 'checkpoint_filter_fn', 'random_keep']


def random_keep(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Noise [B, N] -> the patches of the lowest noise [B, K], in that order, and a mask [B, N], 1 where left out."""
    keep = noise.argsort(dim=1)[:, :int(noise.shape[1] * (1 - mask_ratio))]
    return keep, torch.ones_like(noise).scatter(1, keep, 0)


class MaskedAutoencoder(nn.Module):
    """An encoder of the zoo, and a decoder that is needed in pre-training only.

    Both have fixed sine-cosine tables of positions, the encoder's in place of its own. Tensors but the encoder's have
    the authors' names. The defaults are the paper's for ViT-Tiny; for ViT-Small a decoder of width 192 and 6 heads.

    Args:
        encoder: a plain model with a class token, without classifier, read out by it: `num_classes=0,
            global_pool='token'`. It is given the method's initial values.
        decoder_dim, decoder_depth, decoder_heads, mlp_ratio: the decoder's blocks.
        mask_ratio: share of the patches that the encoder does not see.
        normalize_targets: predict pixels less their patch's mean, over its standard deviation.
    """

    if TYPE_CHECKING:
        decoder_pos_embed: Tensor
        grid_size: tuple[int, int]

    def __init__(
            self,
            encoder: Any,
            decoder_dim: int = 96,
            decoder_depth: int = 1,
            decoder_heads: int = 3,
            mlp_ratio: float = 4.,
            mask_ratio: float = 0.75,
            normalize_targets: bool = True,
    ) -> None:
        super().__init__()
        if encoder.num_classes or encoder.global_pool != 'token' or encoder.pos_embed is None:
            raise ZooError('The encoder of a MaskedAutoencoder has a class token, positions and no classifier: create '
                           "it with num_classes=0, global_pool='token'.")
        dd = get_device_dtype(encoder)
        self.mask_ratio = mask_ratio
        self.normalize_targets = normalize_targets
        self.patch_size = int(encoder.feature_info[0]['reduction'])
        self.encoder: Any = encoder
        height, width = _image_size(encoder)
        self.grid_size = height // self.patch_size, width // self.patch_size
        num_patches = self.grid_size[0] * self.grid_size[1]

        self.decoder_embed = nn.Linear(encoder.embed_dim, decoder_dim, **dd)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim, **dd))
        self.register_buffer('decoder_pos_embed', torch.empty(1, 1 + num_patches, decoder_dim, **dd))
        self.decoder_blocks = nn.Sequential(*[
            Block(decoder_dim, decoder_heads, mlp_ratio, qkv_bias=True, **dd) for _ in range(decoder_depth)])
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6, **dd)
        self.decoder_pred = nn.Linear(decoder_dim, self.patch_size ** 2 * encoder.in_chans, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier-uniform linear layers and patches, tokens of .02, no biases; the tables of positions."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        with torch.no_grad():
            for table in (self.encoder.pos_embed, self.decoder_pos_embed):
                fixed = sincos2d_table(self.grid_size, table.shape[2], 1, device=table.device, dtype=table.dtype)
                table.copy_(fixed)
        self.encoder.pos_embed.requires_grad_(False)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C, H, W] -> loss, prediction [B, N, P * P * C] and mask [B, N], 1 where a patch was left out.

        `noise` [B, N]: the patches of the lowest values are those that the encoder sees; drawn if not given.
        """
        if noise is None:
            noise = torch.rand(len(images), self.decoder_pos_embed.shape[1] - 1, device=images.device)
        keep, mask = random_keep(noise, self.mask_ratio)
        prediction = self.decode(encode(self.encoder, images, keep), keep)
        return self.loss(images, prediction, mask), prediction, mask

    def decode(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Encoder's tokens [B, 1 + K, D] of the patches `keep` [B, K] -> pixels of all patches [B, N, P * P * C]."""
        x = self.decoder_embed(tokens)
        cls_token, seen = x[:, :1], x[:, 1:]
        places = keep[:, :, None].expand(-1, -1, x.shape[2])
        full = self.mask_token.to(x.dtype).expand(len(x), self.decoder_pos_embed.shape[1] - 1, -1)
        x = torch.cat([cls_token, full.scatter(1, places, seen)], dim=1)  # [B, 1 + N, decoder_dim]
        x = self.decoder_norm(self.decoder_blocks(x + self.decoder_pos_embed))
        return self.decoder_pred(x)[:, 1:]

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of a pixel of the patches that were left out."""
        target = cut_patches(images, self.patch_size)
        if self.normalize_targets:
            var, mean = torch.var_mean(target, dim=2, keepdim=True)  # unbiased
            target = (target - mean) / (var + 1e-6).sqrt()
        error = (prediction - target).square().mean(dim=2)  # [B, N]
        return (error * mask).sum() / mask.sum()


def _image_size(encoder: Any) -> tuple[int, int]:
    return encoder.img_size if hasattr(encoder, 'img_size') else encoder.patch_embed.img_size


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: MaskedAutoencoder) -> dict[str, Tensor]:
    """The tensors of the authors' pre-training model, or of ours, bare or wrapped, for `model.load_state_dict`.

    The tables of positions are fixed: a file need not hold them.
    """
    decoder = ('mask_token', 'decoder_', 'encoder.')
    tensors = {name if name.startswith(decoder) else f'encoder.{name}': tensor
               for name, tensor in unwrap(state_dict).items()}
    fixed = ('encoder.pos_embed', 'decoder_pos_embed')
    return {**{name: model.state_dict()[name] for name in fixed}, **tensors}
