"""FGSM and PGD attacks in the maximum norm, on pixels from 0 to 1 before normalisation.

An image counts as robust only if the model classifies it and every point of the attack correctly: as the step is a
fixed share of the radius, more steps can only find more adversarial examples.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.seeds import derived
from ..errors import ZooError

_STEP = 0.25    # of the radius


@dataclass(frozen=True)
class Attack:
    """FGSM (arXiv 1412.6572), one step of the radius; or PGD (arXiv 1706.06083), `steps` of a quarter of it.

    PGD starts at random in the cube. `radius` is in grey levels (1/255).
    """
    name: str
    radius: float
    steps: int = 20

    def __post_init__(self) -> None:
        if self.name not in ('fgsm', 'pgd'):
            raise ZooError(f'There is no attack {self.name!r}: expected fgsm or pgd.')
        if not 0 <= self.radius < math.inf:
            raise ZooError(f'radius is {self.radius:g}, expected grey levels from 0 (no change) up; 8 is usual.')
        if self.steps < 1:
            raise ZooError(f'steps is {self.steps}, expected 1 or more.')


def _withstands(
        model: nn.Module, images: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor], attack: Attack,
        generator: torch.Generator,
) -> int:
    """Return how many of the images (uint8 [B, C, H, W]) the attack leaves correctly classified.

    Images that are misclassified once are not attacked further.
    """
    clean, radius = images.to(torch.float32) / 255, attack.radius / 255
    left = torch.arange(len(images), device=images.device)
    left = left[_correct(model, clean, labels, prepare)]
    points, steps, length = clean, 1, radius
    if attack.name == 'pgd':
        noise = 2 * torch.rand(clean.shape, generator=generator, device=clean.device) - 1
        points, steps, length = (clean + radius * noise).clamp_(0, 1), attack.steps, _STEP * radius
    points = points[left]
    for _ in range(steps):
        if not len(left):
            break
        correct, gradient = _gradient(model, points, labels[left], prepare)
        points, left = (points + length * gradient.sign())[correct], left[correct]
        points = points.clamp(clean[left] - radius, clean[left] + radius).clamp_(0, 1)
    return int(_correct(model, points, labels[left], prepare).sum()) if len(left) else 0


@torch.no_grad()
def _correct(model: nn.Module, points: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    return model(prepare(255 * points)).argmax(1) == labels


def _gradient(
        model: nn.Module, points: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return which points are classified correctly, and the gradient of the loss with respect to pixels."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = model(prepare(255 * points)).float()
        gradient, = torch.autograd.grad(F.cross_entropy(logits, labels, reduction='sum'), points)
    return logits.argmax(1) == labels, gradient


def count_robust(
        model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], prepare: Callable[[Tensor], Tensor],
        attacks: Sequence[Attack], seed: int = 0,
) -> list[int]:
    """Return how many images withstand each attack, and last the number of images.

    Batches are uint8, `prepare` normalises images from 0 to 255. The model runs in eval mode and float32.
    """
    training = model.training
    model.eval()
    counts = [0] * (len(attacks) + 1)
    for number, (images, labels) in enumerate(batches):
        counts[-1] += len(labels)
        for i, attack in enumerate(attacks):
            generator = torch.Generator(images.device).manual_seed(derived(seed, number))  # the same start for all
            counts[i] += _withstands(model, images, labels, prepare, attack, generator)
    model.train(training)
    return counts
