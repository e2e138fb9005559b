"""Accuracy under attack: images changed within a radius so that the model errs (FGSM, PGD in the maximum norm).

Attacks see the gradient of the cross-entropy with respect to pixels from 0 to 1, before normalisation. An image counts
as robust only where the model is right on the image itself and on every point the attack went through: as the step is
a fixed share of the radius, more steps can only find more.
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
    """`radius` in grey levels (1/255). FGSM (arXiv 1412.6572): one step of the whole radius from the image.

    PGD (arXiv 1706.06083): a random start in the cube, then `steps` steps of a quarter of the radius.
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


def withstands(
        model: nn.Module, images: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor], attack: Attack,
        generator: torch.Generator,
) -> Tensor:
    """[B]: on which of the images (uint8 [B, C, H, W]) the model is right whatever the attack tried.

    The model stays in the mode it is in; `prepare` normalises images from 0 to 255. An image that has fallen is not
    attacked any further.
    """
    clean, radius = images.to(torch.float32) / 255, attack.radius / 255
    left = torch.arange(len(images), device=images.device)
    left = left[_forward(model, clean, prepare).argmax(1) == labels]
    points, steps, length = clean, 1, radius
    if attack.name == 'pgd':
        noise = 2 * torch.rand(clean.shape, generator=generator, device=clean.device) - 1
        points, steps, length = (clean + radius * noise).clamp_(0, 1), attack.steps, _STEP * radius
    points = points[left]
    for _ in range(steps):
        if not len(left):
            break
        right, gradient = _gradient(model, points, labels[left], prepare)
        points, left = (points + length * gradient.sign())[right], left[right]
        points = points.clamp(clean[left] - radius, clean[left] + radius).clamp_(0, 1)
    if len(left):
        left = left[_forward(model, points, prepare).argmax(1) == labels[left]]
    return torch.zeros(len(images), dtype=torch.bool, device=images.device).index_fill_(0, left, True)


@torch.no_grad()
def _forward(model: nn.Module, points: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    return model(prepare(255 * points))


def _gradient(
        model: nn.Module, points: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Where the model is right, and the gradient of the loss for each pixel."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = model(prepare(255 * points)).float()
        gradient, = torch.autograd.grad(F.cross_entropy(logits, labels, reduction='sum'), points)
    return logits.argmax(1) == labels, gradient


def count_robust(
        model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], prepare: Callable[[Tensor], Tensor],
        attacks: Sequence[Attack], seed: int = 0, show: Callable[[int], None] = lambda done: None,
) -> list[int]:
    """How many images withstand each attack, and last how many there are. Batches are uint8.

    The model is judged in eval mode and float32. `show` is told how many attacks on a batch are done.
    """
    training = model.training
    model.eval()
    counts, done = [0] * (len(attacks) + 1), 0
    for number, (images, labels) in enumerate(batches):
        counts[-1] += len(labels)
        for i, attack in enumerate(attacks):
            generator = torch.Generator(images.device).manual_seed(derived(seed, number))  # the same start for all
            counts[i] += int(withstands(model, images, labels, prepare, attack, generator).sum())
            done += 1
            show(done)
    model.train(training)
    return counts
