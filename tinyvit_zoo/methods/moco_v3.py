"""MoCo-v3: contrastive learning with a momentum encoder (arXiv 2104.02057; as in MAE-Lite, arXiv 2205.14443).

Encoder, projector and predictor make the query of one view; moving averages of encoder and projector make the key of
the other view. The loss is a symmetric InfoNCE against the keys of all other images. Keys and batch norms span all
processes.

    loss = MoCoV3(encoder)(views)       # [2, B, C, H, W]
"""
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..augment.spec import AugmentSpec
from ..augment.views import Views, contrastive_views
from ..errors import ZooError
from ..layers import sincos2d_table
from ..recipes.ranges import FROM_1, POSITIVE, SHARE
from ..runtime.world import without_autocast
from . import joint
from .joint import average_, feature_width, momentum_at, teacher_of
from .method import Method


class MoCoV3(Method):
    """Pre-train an encoder of the zoo by MoCo-v3. The defaults are the paper's for ViT-Tiny.

    Args:
        encoder: any model without classifier (`num_classes=0`); its pooled features are compared. A VisionTransformer
            gets the method's fixed positions (sine-cosine, the row first) and a class token near 0.
        hidden_dim, dim: of the projector and the predictor.
        temperature: of the softmax over the keys.
        momentum: of the averages at the start; it rises to 1.
    """
    whole_batches = own_views = True

    def __init__(self, encoder: Any, hidden_dim: int = 4096, dim: int = 256, temperature: float = 0.2,
                 momentum: float = 0.99) -> None:
        FROM_1.check(hidden_dim=hidden_dim, dim=dim)
        POSITIVE.check(temperature=temperature)
        SHARE.check(momentum=momentum)
        super().__init__()
        width = feature_width(encoder)
        self.temperature, self.momentum = temperature, momentum
        self.encoder = encoder
        if isinstance(encoder, VisionTransformer):
            _init_as_authors(encoder)
        self.projector = _mlp(width, hidden_dim, hidden_dim, dim)
        self.predictor = _mlp(dim, hidden_dim, dim)
        self.momentum_encoder = teacher_of(self.encoder)
        self.momentum_projector = teacher_of(self.projector)

    def views(self, spec: AugmentSpec) -> Views:
        return contrastive_views(spec)

    def train(self, mode: bool = True) -> 'MoCoV3':
        super().train(mode)
        self.momentum_encoder.eval()
        return self

    def forward(self, views: Tensor) -> Tensor:
        """Return the loss of two views of each image [2, B, C, H, W]."""
        images = views.flatten(0, 1)
        # one view at a time through the batch norms, as in the paper
        q1, q2 = (self.predictor(self.projector(x)) for x in self.encoder(images).chunk(2))  # [B, dim]
        with torch.no_grad():
            k1, k2 = (self.momentum_projector(x) for x in self.momentum_encoder(images).chunk(2))
        return self.contrast(q1, k2) + self.contrast(q2, k1)

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        """Return InfoNCE of queries and keys [B, dim]: find the key of the same image among all processes'."""
        with without_autocast(q.device):
            q, k = (F.normalize(joint.in_full(x), dim=1) for x in (q, k))
            k = joint.gathered(k)
            logits = q @ k.T / self.temperature  # [B, processes * B]
            labels = torch.arange(len(q), device=q.device) + len(q) * joint.rank()
            return 2 * self.temperature * F.cross_entropy(logits, labels)

    def after_step(self, progress: float) -> None:
        decay = momentum_at(progress, self.momentum)
        average_(self.momentum_encoder, self.encoder, decay)
        average_(self.momentum_projector, self.projector, decay)


def _mlp(*widths: int) -> nn.Sequential:
    """Make linear layers without bias, each with a batch norm, ReLU between; the last norm is not affine."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths), start=2):
        last = i == len(widths)
        layers += [nn.Linear(before, after, bias=False), joint.BatchNorm(after, affine=not last)]
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _init_as_authors(encoder: Any) -> None:
    if encoder.pos_embed is None:
        raise ZooError('The encoder has no position embedding, which MoCo-v3 needs: create it with one.')
    table = encoder.pos_embed
    with torch.no_grad():
        table.copy_(sincos2d_table(
            encoder.patch_embed.grid_size, table.shape[2], table.shape[1] - encoder.patch_embed.num_patches,
            row_first=True, device=table.device, dtype=table.dtype))
    table.requires_grad_(False)
    if encoder.cls_token is not None:
        nn.init.normal_(encoder.cls_token, std=1e-6)
