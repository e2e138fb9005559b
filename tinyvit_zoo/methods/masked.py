"""The base of the masked autoencoders (MAE, arXiv 2111.06377): masking, the decoder, the pixels to predict.

The encoder sees only the few unmasked patches. A small decoder gets all patches in their places, a learned mask token
for the masked ones, and predicts the pixels of each.
"""
from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import ZooError
from ..layers import ShiftedPatchTokenization, cut_patches
from ..models import encode, image_size, require_plain
from ..recipes.ranges import COUNT, FROM_1, POSITIVE, SHARE
from .method import Method

_OR_JOINT = 'Or use moco_v3 or self_distill, which take any model.'


def random_keep(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Return the patches of the lowest noise [B, N] -> [B, K], in that order, and a mask [B, N], 1 where left out."""
    keep = noise.argsort(dim=1)[:, :int(noise.shape[1] * (1 - mask_ratio))]
    return keep, torch.ones_like(noise).scatter(1, keep, 0)


def join_patches(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Undo `cut_patches`: [B, N, size * size * C] -> [B, C, rows * size, cols * size]."""
    x = patches.unflatten(2, (size, size, -1)).unflatten(1, grid)  # [B, rows, cols, size, size, C]
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class MaskedModel(Method):
    """An encoder and a decoder for pre-training. Subclasses define the decoder's positions and the loss.

    Args:
        encoder: a plain model (see models/encoder.py) without classifier: `num_classes=0`, and for timm's
            VisionTransformer `global_pool='token'`. A class token goes through the decoder with the patches.
        decoder_dim, decoder_depth, decoder_heads, mlp_ratio: the decoder's blocks.
        mask_ratio: share of the patches that the encoder does not see.
        normalize_targets: predict pixels less their patch's mean, over its standard deviation.
    """
    decoder_pos_embed: Tensor
    pictures = 8

    def __init__(self, encoder: Any, decoder_dim: int, decoder_depth: int, decoder_heads: int, mlp_ratio: float,
                 mask_ratio: float, normalize_targets: bool) -> None:
        FROM_1.check(decoder_dim=decoder_dim, decoder_heads=decoder_heads)
        COUNT.check(decoder_depth=decoder_depth)
        POSITIVE.check(mlp_ratio=mlp_ratio)
        SHARE.check(mask_ratio=mask_ratio)
        super().__init__()
        _require_encoder(encoder)
        if decoder_dim % decoder_heads:
            raise ZooError(f'decoder_dim is {decoder_dim}, expected a multiple of decoder_heads, {decoder_heads}.')
        dd = get_device_dtype(encoder)
        self.encoder = encoder
        self.mask_ratio, self.normalize_targets = mask_ratio, normalize_targets
        self.patch_size, self.grid_size = patch_grid(encoder)
        self.prefix = int(encoder.num_prefix_tokens)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        if not 1 <= int(self.num_patches * (1 - mask_ratio)) < self.num_patches:
            raise ZooError(f'mask_ratio {mask_ratio:g} of {self.num_patches} patches leaves none visible or none to '
                           f'predict.')
        for unused in (encoder.get_classifier(), getattr(encoder, 'attn_pool', None)):
            if isinstance(unused, nn.Module):  # nothing here trains it
                unused.requires_grad_(False)
        self.decoder_embed = nn.Linear(encoder.embed_dim, decoder_dim, **dd)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim, **dd))
        self.decoder_blocks = nn.Sequential(*[
            Block(decoder_dim, decoder_heads, mlp_ratio, qkv_bias=True, **dd) for _ in range(decoder_depth)])
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6, **dd)
        self.decoder_pred = nn.Linear(decoder_dim, self.patch_size ** 2 * encoder.in_chans, **dd)

    @classmethod
    def check_encoder(cls, encoder: Any) -> None:
        try:
            require_plain(encoder)
        except ZooError as e:
            raise ZooError(f'{e} {_OR_JOINT}') from e

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw noise [count, N]; the encoder sees the patches of the lowest values."""
        return (torch.rand(count, self.num_patches, generator=generator, device=generator.device),)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the loss of images [B, C, H, W]; `noise`: as from `draw`."""
        prediction, mask = self.reconstruct(images, noise)
        return self.loss(images, prediction, mask)

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the predicted pixels of all patches [B, N, P * P * C], and a mask [B, N], 1 where masked."""
        keep, mask = self.masked(images, noise)
        return self.decode(encode(self.encoder, self.seen(images, mask), keep), keep), mask

    def masked(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the indices of the visible patches [B, K], and a mask [B, N] of the others."""
        if noise is None:
            noise = torch.rand(len(images), self.num_patches, device=images.device)
        return random_keep(noise, self.mask_ratio)

    def seen(self, images: Tensor, mask: Tensor) -> Tensor:
        """Blank the masked pixels for shifted patches, which overlap their neighbours."""
        if not isinstance(getattr(self.encoder, 'tokenizer', None), ShiftedPatchTokenization):
            return images
        return images * (1 - self.as_image(mask[:, :, None].expand(-1, -1, self.patch_size ** 2), images))

    def as_image(self, patches: Tensor, images: Tensor) -> Tensor:
        """Arrange values by patch [B, N, P * P * C] -> [B, C, H, W]; 0 outside of whole patches."""
        joined = join_patches(patches, self.grid_size, self.patch_size)
        height, width = joined.shape[2:]
        return nn.functional.pad(joined, (0, images.shape[3] - width, 0, images.shape[2] - height))

    def decode(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Predict all pixels [B, N, P * P * C] from the tokens [B, prefix + K, D] of the patches `keep` [B, K]."""
        x = self.decoder_embed(tokens)
        first, seen = x[:, :self.prefix], x[:, self.prefix:]
        places = keep[:, :, None].expand(-1, -1, x.shape[2])
        full = self.mask_token.to(x.dtype).expand(len(x), self.num_patches, -1)
        x = torch.cat([first, full.scatter(1, places, seen)], dim=1)  # [B, prefix + N, decoder_dim]
        x = self.decoder_norm(self.decoder_blocks(x + self.decoder_pos_embed))
        return self.decoder_pred(x)[:, self.prefix:]

    def errors(self, images: Tensor, prediction: Tensor) -> Tensor:
        """Return the mean squared error of each patch [B, N]."""
        target = cut_patches(images, self.patch_size)
        if self.normalize_targets:
            var, mean = torch.var_mean(target, dim=2, keepdim=True)  # unbiased
            target = (target - mean) / (var + 1e-6).sqrt()
        return (prediction - target).square().mean(dim=2)

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError

    def drawn(self, images: Tensor) -> dict[str, Tensor]:
        """Return images, masked and predicted, always with the same masks."""
        noise, = self.draw(len(images), torch.Generator(images.device).manual_seed(0))
        training = self.training
        masked, predicted = self.eval().picture(images, noise)
        self.train(training)
        return {'seen': masked, 'predicted': predicted, 'original': images}

    @torch.no_grad()
    def picture(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] with masked patches blank, and predicted ones (scaled by the truth)."""
        prediction, mask = self.reconstruct(images, noise)
        prediction = prediction.to(images.dtype)
        if self.normalize_targets:
            var, mean = torch.var_mean(cut_patches(images, self.patch_size), dim=2, keepdim=True)
            prediction = prediction * (var + 1e-6).sqrt() + mean
        hidden = mask[:, :, None].expand_as(prediction)
        blank = images * (1 - self.as_image(hidden, images))
        return blank, blank + self.as_image(prediction * hidden, images)


def _require_encoder(encoder: Any) -> None:
    name = type(encoder).__name__
    if encoder.num_classes or list(getattr(encoder, 'fc_norm', nn.Identity()).parameters()):
        raise ZooError(f'The encoder of a masked autoencoder must end in its norm, without a classifier: create this '
                       f"{name} with num_classes=0, global_pool='token'.")
    weight = next(encoder.parameters())
    probe = torch.zeros(1, encoder.in_chans, *image_size(encoder), device=weight.device, dtype=weight.dtype)
    training = encoder.training
    try:
        with torch.no_grad():
            encode(encoder.eval(), probe, torch.zeros(1, 1, dtype=torch.int64, device=probe.device))
    except ZooError as e:
        raise ZooError(f'{e} {_OR_JOINT}') from e
    finally:
        encoder.train(training)
    if encoder.pos_embed is None:
        raise ZooError(f'This {name} has no position embedding, which a masked autoencoder needs: create it with one, '
                       f'or use moco_v3 or self_distill.')


def patch_grid(encoder: Any) -> tuple[int, tuple[int, int]]:
    """Return the side of a patch, and the rows and columns of patches."""
    patch = int(encoder.feature_info[0]['reduction'])
    height, width = image_size(encoder)
    return patch, (height // patch, width // patch)
