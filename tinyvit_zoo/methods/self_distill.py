"""Self-distillation on low-resolution views (arXiv 2210.07240, after DINO, arXiv 2104.14294).

The student sees two views of an image and local ones of half the size; its outputs are trained towards the teacher's
for another of the two views. The teacher is a moving average of the student. Centring and sharpening its outputs
prevent collapse.

    loss = SelfDistillation(encoder)(whole, local)      # [2, B, C, 32, 32], [8, B, C, 16, 16]
"""
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ..augment.spec import AugmentSpec
from ..augment.views import Views, low_resolution_views
from ..models import image_size
from ..recipes.ranges import COUNT, FROM_1, POSITIVE, SHARE
from ..runtime.world import without_autocast
from . import joint
from .joint import average_, feature_width, momentum_at, require_size, teacher_of
from .method import Method


class Head(nn.Module):
    """Features [N, D] -> [N, num_prototypes], the cosines to learned directions."""

    def __init__(
            self, in_dim: int, hidden_dim: int = 512, bottleneck_dim: int = 256, num_prototypes: int = 1024) -> None:
        super().__init__()
        first, second, third = (
            nn.Linear(before, after) for before, after in pairwise((in_dim, hidden_dim, hidden_dim, bottleneck_dim)))
        for layer in (first, second, third):
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)
        self.last_layer = weight_norm(nn.Linear(bottleneck_dim, num_prototypes, bias=False))
        norm = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(norm)
        norm.requires_grad_(False)

    @property
    def directions(self) -> nn.Parameter:
        """Return the learned directions [num_prototypes, bottleneck_dim], of any length."""
        return self.last_layer.parametrizations.weight.original1

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        with without_autocast(x.device):
            return self.last_layer(F.normalize(x.to(self.directions.dtype), dim=1))


class SelfDistillation(Method):
    """Train an encoder of the zoo and its head by a teacher of both. The defaults are the paper's.

    Args:
        encoder: any model without classifier (`num_classes=0`), pooled; its positions are interpolated for local views.
        local_views: number of views of half the size, each of a share `local_scale` of the image.
        hidden_dim, bottleneck_dim, num_prototypes: of the head.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's, before and after `temperature_warmup`, a share of the training, in which
            it rises linearly.
        freeze_last: share of the training, at its start, in which the last layer is frozen.
        momentum: of the teacher at the start; it rises to 1.
        centre_momentum: of the centre.
    """
    centre: Tensor
    temperature: Tensor
    own_views = True

    def __init__(self, encoder: Any, local_views: int = 8, local_scale: tuple[float, float] = (0.2, 0.5),
                 hidden_dim: int = 512, bottleneck_dim: int = 256, num_prototypes: int = 1024,
                 student_temperature: float = 0.1, teacher_temperature: tuple[float, float] = (0.04, 0.07),
                 temperature_warmup: float = 0.05, freeze_last: float = 0.005, momentum: float = 0.996,
                 centre_momentum: float = 0.9) -> None:
        COUNT.check(local_views=local_views)
        FROM_1.check(hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim, num_prototypes=num_prototypes)
        POSITIVE.check(student_temperature=student_temperature)
        POSITIVE.of(2).check(local_scale=local_scale, teacher_temperature=teacher_temperature)
        SHARE.check(temperature_warmup=temperature_warmup, freeze_last=freeze_last, momentum=momentum,
                    centre_momentum=centre_momentum)
        super().__init__()
        height, width = image_size(encoder)
        self.local_views, self.local_scale, self.local_size = local_views, local_scale, (height // 2, width // 2)
        if local_views:
            require_size(encoder, self.local_size)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.temperature_warmup, self.freeze_last = temperature_warmup, freeze_last
        self.momentum, self.centre_momentum = momentum, centre_momentum
        self.encoder = encoder
        self.head = Head(feature_width(encoder), hidden_dim, bottleneck_dim, num_prototypes)
        self.teacher_encoder, self.teacher_head = teacher_of(self.encoder), teacher_of(self.head)
        self.register_buffer('centre', torch.zeros(len(self.head.directions)))
        self.register_buffer('temperature', torch.tensor(float(teacher_temperature[0])))
        self._confidence: Tensor | None = None
        self._outputs: list[tuple[Tensor, int]] = []    # sums of the teacher's outputs in a step, of how many views
        self._stepped = False                           # since the last of them

    def views(self, spec: AugmentSpec) -> Views:
        return low_resolution_views(spec, self.local_views, self.local_scale, self.local_size)

    def train(self, mode: bool = True) -> 'SelfDistillation':
        super().train(mode)
        self.teacher_encoder.eval()
        self.teacher_head.eval()
        return self

    def forward(self, *sizes: Tensor) -> Tensor:
        """Return the loss of views [V, B, C, H, W], a tensor for each size; the teacher sees the first."""
        with torch.no_grad():
            logits = self.teacher_head(self.teacher_encoder(sizes[0].flatten(0, 1)))
            targets = ((logits - self.centre) / self.temperature).softmax(dim=1)
            if self.training:
                self._confidence = targets.amax(dim=1).mean()
                if self._stepped:
                    self._outputs, self._stepped = [], False
                self._outputs.append((logits.sum(dim=0), len(logits)))
        # one pass through the encoder for each size, one through the head for all
        features = torch.cat([self.encoder(views.flatten(0, 1)) for views in sizes])
        guesses = (self.head(features) / self.student_temperature).log_softmax(dim=1)
        batch = sizes[0].shape[1]
        return loss_of_pairs(targets.unflatten(0, (-1, batch)), guesses.unflatten(0, (-1, batch)))

    def kind_at(self, progress: float) -> bool:
        return progress < self.freeze_last

    def before_step(self, progress: float) -> None:
        if progress < self.freeze_last:
            self.head.directions.grad = None

    def after_step(self, progress: float) -> None:
        decay = momentum_at(progress, self.momentum)
        average_(self.teacher_encoder, self.encoder, decay)
        average_(self.teacher_head, self.head, decay)
        with torch.no_grad():
            logits = torch.stack([total for total, _ in self._outputs]).sum(dim=0)
            mean = logits / sum(views for _, views in self._outputs)
            self.centre.lerp_(joint.mean(mean), 1 - self.centre_momentum)
        self._stepped = True
        low, high = self.teacher_temperature
        self.temperature.fill_(low + (high - low) * min(1., progress / max(self.temperature_warmup, 1e-9)))

    def trouble(self) -> str:
        """Report uniform targets of the teacher, at which the loss is ln(num_prototypes)."""
        if self._confidence is None or self._confidence.item() * len(self.centre) > 1.5:
            return ''
        return ('the teacher gives the same output for every image. Try a lower teacher_temperature, a lower momentum '
                '(method_args) or a higher lr')

    def kept(self) -> nn.Module:
        """Return the teacher's encoder."""
        return self.teacher_encoder


def loss_of_pairs(targets: Tensor, guesses: Tensor) -> Tensor:
    """Average the cross-entropy over pairs of different views: probabilities [T, B, K] with logs [V, B, K]."""
    with without_autocast(targets.device):
        pairs = targets.flatten(1) @ guesses.flatten(1).T  # [T, V]
    others = pairs.sum() - pairs.diagonal().sum()
    return -others / (targets.shape[1] * (pairs.numel() - len(pairs)))
