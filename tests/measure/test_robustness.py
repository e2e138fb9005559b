"""Error on corrupted images, ours and published ones, and accuracy under attack."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.measure.accuracy import accuracy
from tinyvit_zoo.measure.bench import Bench
from tinyvit_zoo.measure.corruptions import CORRUPTIONS
from tinyvit_zoo.measure.robustness import (
    Attack,
    attack_figures,
    corrupted,
    corruption_figures,
    count_robust,
    mean_corruption_error,
    open_published,
)
from tinyvit_zoo.runtime.world import World
from tinyvit_zoo.weights.resolve import resolve


@pytest.fixture(scope='module')
def bench() -> Bench:
    """The digits weights that ship, on 60 test images."""
    pytest.importorskip('sklearn')
    source = open_source('digits')
    assert source.test
    source = replace(source, test=source.test.select(torch.arange(60)))
    return Bench(resolve('cct_2_3x2.digits').load(), source, 'test', World(0, 1, torch.device('cpu')))


def top1s(bench: Bench, name: str, *radii: float, steps: int = 10) -> list[float]:
    return attack_figures(bench, [Attack(name, radius, steps) for radius in radii])['top1s']


def test_images_are_preprocessed_as_for_the_accuracy(bench: Bench) -> None:
    """Cropped and resized by another cfg: an attack of radius 0 changes nothing."""
    cfg = {**bench.loaded.cfg, 'crop_pct': 0.6, 'interpolation': 'bilinear'}
    cropped = replace(bench, loaded=replace(bench.loaded, cfg=cfg))
    assert top1s(cropped, 'fgsm', 0) == [pytest.approx(accuracy(cropped).top1)]
    assert top1s(cropped, 'fgsm', 0) != [pytest.approx(accuracy(bench).top1)]


def test_accuracy_falls_to_nothing_as_the_radius_grows_and_steps_help_the_attacker(bench: Bench) -> None:
    robust = top1s(bench, 'pgd', 0, 8, 24, 64, 160)
    assert robust[0] == pytest.approx(accuracy(bench).top1) and robust[0] > 60
    assert robust == sorted(robust, reverse=True) and robust[-1] == 0
    fewer, more = (top1s(bench, 'pgd', 24, steps=steps)[0] for steps in (1, 4))
    assert fewer >= more >= robust[2] and fewer > robust[2]
    assert robust[2] <= top1s(bench, 'fgsm', 24)[0] < robust[0]


def test_a_published_set_is_read_in_its_layout(bench: Bench, tmp_path: Path) -> None:
    """Severities come one after the other; images that are noise from severity 3 on must show there and only there."""
    from sklearn.datasets import load_digits

    count, data = 40, load_digits()
    images = np.repeat((data.images[:count] * 15.9).astype(np.uint8)[..., None], 3, axis=3)
    write_published(tmp_path, images, data.target[:count])
    bad = np.random.RandomState(0).randint(0, 255, (3 * count, *images.shape[1:])).astype(np.uint8)
    np.save(tmp_path / 'fog.npy', np.concatenate([images, images, bad]))
    np.save(tmp_path / 'spatter.npy', np.tile(bad[:count], (5, 1, 1, 1)))
    figures = corruption_figures(bench, tmp_path)
    errors = figures['errors']
    clean = errors['contrast'][0]
    assert all(row == [clean] * 5 for name, row in errors.items() if name not in ('fog', 'spatter'))
    assert errors['fog'][:2] == [clean, clean] and min(errors['fog'][2:]) > clean + 30 and clean < 50
    assert figures['mce'] == pytest.approx((clean * 72 + sum(errors['fog'][2:])) / 75)    # without spatter
    assert figures['source'] == str(tmp_path)


def write_published(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    np.save(folder / 'labels.npy', np.tile(labels, 5))
    for name in CORRUPTIONS:
        np.save(folder / f'{name}.npy', np.tile(images, (5, 1, 1, 1)))


def test_the_mean_is_over_the_fifteen() -> None:
    errors = {name: [float(i)] * 5 for i, name in enumerate(CORRUPTIONS)}
    assert mean_corruption_error({**errors, 'spatter': [1e9] * 5}) == pytest.approx(7.)


def test_the_same_seed_gives_the_same_images() -> None:
    batches = [(torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), torch.zeros(3).long()) for _ in range(2)]
    first, again, other = ([images for images, _ in corrupted(batches, 'snow', 3, seed)] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and not torch.equal(first[0], other[0])


@pytest.mark.parametrize(('change', 'said'), [
    (lambda folder: (folder / 'fog.npy').unlink(), 'lacks fog.npy'),
    (lambda folder: (folder / 'fog.npy').write_bytes(b'not an array'), 'fog.npy'),
    (lambda folder: np.save(folder / 'fog.npy', np.zeros((4, 8, 8, 3), np.uint8)), 'expected uint8 [10, H, W, 3]'),
    (lambda folder: np.save(folder / 'labels.npy', np.arange(9)), 'five severities'),
    (lambda folder: np.save(folder / 'labels.npy', np.full(10, 12)), 'the model has 10'),
])
def test_a_damaged_published_set_is_named(change: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    write_published(tmp_path, np.zeros((2, 8, 8, 3), np.uint8), np.array([3, 9]))
    assert open_published(tmp_path, 10).split('fog', 5).labels.tolist() == [3, 9]
    change(tmp_path)
    with pytest.raises(ZooError) as error:
        open_published(tmp_path, 10)
    assert said in str(error.value) and r'\n' not in str(error.value)


# -- attacks on a model whose answers are known ------------------------------------------------------------------------
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
