"""Accuracy under attack, against models whose answers are known."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tinyvit_zoo.measure.attacks import Attack, count_robust


class Threshold(nn.Module):
    """Class 1 where the mean pixel (normalised by halves) is above the middle: what an attack needs is known."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.))
        self.dropout = nn.Dropout(0.5)      # in eval mode it does nothing, in training mode it would show

    def forward(self, x: Tensor) -> Tensor:
        score = self.gain * self.dropout(x).mean((1, 2, 3))
        return torch.stack([-score, score], 1)


def prepare(images: Tensor) -> Tensor:
    return (images / 255 - 0.5) / 0.5


def grey(levels: list[int]) -> tuple[Tensor, Tensor]:
    """Even images of these levels; their classes by the middle, 127.5."""
    images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return images, torch.tensor([int(level > 127) for level in levels])


@pytest.mark.parametrize('name', ['fgsm', 'pgd'])
def test_an_image_falls_where_the_radius_reaches_the_boundary(name: str) -> None:
    """Levels 1.5 to 20.5 from the boundary: those nearer than the radius fall, and no other."""
    levels = [127 - d for d in (1, 3, 7, 12, 20)] + [128 + d for d in (1, 3, 7, 12, 20)]
    batches = [grey(levels[:6]), grey(levels[6:])]
    model = Threshold().train()
    radii = [0, 1, 2, 5, 10, 15, 25]
    counts = count_robust(model, batches, prepare, [Attack(name, radius) for radius in radii])
    assert counts == [10, 10, 8, 6, 4, 2, 0, 10]
    assert model.training and model.gain.grad is None


def test_what_the_model_gets_wrong_is_not_robust() -> None:
    images, labels = grey([20, 240, 30])
    assert count_robust(Threshold(), [(images, 1 - labels)], prepare, [Attack('pgd', 0)]) == [0, 3]


def test_attacks_stay_within_the_radius_and_among_pixels() -> None:
    seen: list[Tensor] = []

    class Watcher(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x * 0.5 + 0.5).detach())
            return super().forward(x)

    images, labels = grey([1, 254])
    for attack in (Attack('fgsm', 3), Attack('pgd', 3, 7)):
        seen.clear()
        count_robust(Watcher(), [(images, labels)], prepare, [attack])
        away = torch.stack(seen) - images / 255
        assert len(seen) == {'fgsm': 3, 'pgd': 9}[attack.name]     # the image, each step, the last point
        assert away.abs().max().item() == pytest.approx(3 / 255, abs=1e-6)
        assert -1e-6 <= torch.stack(seen).min() and torch.stack(seen).max() <= 1 + 1e-6
