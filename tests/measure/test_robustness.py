"""Errors on corrupted images and accuracy under attack, against models whose answers are known."""
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tinyvit_zoo  # noqa: F401
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.measure.attacks import Attack, count_robust
from tinyvit_zoo.measure.corruptions import CORRUPTIONS
from tinyvit_zoo.measure.robustness import corrupted, mean_corruption_error, open_published
from tinyvit_zoo.weights import read_cfg, save_weights


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


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the digits, mostly."""
    pytest.importorskip('sklearn')
    folder = tmp_path_factory.mktemp('trained')
    assert main(['train', 'cct_2_3x2.digits', '--data', 'digits', '--epochs', '3', '--img-size', '16', '--lr', '2e-3',
                 '--warmup-epochs', '1', '--device', 'cpu', '--precision', 'fp32', '--output', f'{folder}/run']) == 0
    return folder / 'run'


def evaluated(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    capsys.readouterr()
    assert main(['eval', *map(str, argv), '--device', 'cpu', '--json']) == 0
    return json.loads(capsys.readouterr().out)[0]


@pytest.mark.slow
def test_images_are_prepared_as_for_the_accuracy(
        trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut from the middle where the weights want it: an attack without force changes nothing."""
    file = tmp_path / 'cropped.safetensors'
    cfg = {**read_cfg(trained / 'weights.safetensors'), 'crop_pct': 0.6, 'interpolation': 'bilinear'}
    save_weights(load_file(trained / 'weights.safetensors'), file, {'pretrained_cfg': json.dumps(cfg)})
    found = evaluated(capsys, f'cct_2_3x2={file}', '--data', 'digits', '--attack', 'fgsm', '--radius', 0)
    assert found['attack']['top1s'] == [pytest.approx(found['top1'])]
    assert found['top1'] != pytest.approx(evaluated(capsys, trained, '--data', 'digits')['top1'])


@pytest.mark.slow
def test_accuracy_falls_to_nothing_as_the_radius_grows_and_steps_help_the_attacker(
        trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, trained, '--data', 'digits', '--attack', 'pgd', '--steps', 10,
                      '--radius', 0, 8, 24, 64, 160)
    accuracies = found['attack']['top1s']
    assert accuracies[0] == pytest.approx(found['top1']) and found['top1'] > 60
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] == 0
    fewer, more = (evaluated(capsys, trained, '--data', 'digits', '--attack', 'pgd', '--radius', 24, '--steps', steps)
                   ['attack']['top1s'][0] for steps in (1, 4))
    assert fewer >= more >= accuracies[2] and fewer > accuracies[2]
    single = evaluated(capsys, trained, '--data', 'digits', '--attack', 'fgsm', '--radius', 24)['attack']['top1s'][0]
    assert accuracies[2] <= single < found['top1']


def test_a_published_set_is_read_in_its_layout(
        trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Severities come one after the other; images that are noise from severity 3 on must show there and only there."""
    from sklearn.datasets import load_digits

    data = load_digits()
    count = 40
    images = np.repeat((data.images[:count] * 15.9).astype(np.uint8)[..., None], 3, axis=3)
    labels = data.target[:count]
    write_published(tmp_path, images, labels)
    rng = np.random.RandomState(0)
    bad = rng.randint(0, 255, (3, *images.shape)).astype(np.uint8).reshape(-1, *images.shape[1:])
    np.save(tmp_path / 'fog.npy', np.concatenate([images, images, bad]))
    np.save(tmp_path / 'spatter.npy', np.tile(bad[:count], (5, 1, 1, 1)))
    found = evaluated(capsys, trained, '--data', 'digits', '--corruptions', tmp_path)['corruptions']
    errors = found['errors']
    clean = errors['contrast'][0]
    assert all(row == [clean] * 5 for name, row in errors.items() if name not in ('fog', 'spatter'))
    assert errors['fog'][:2] == [clean, clean] and min(errors['fog'][2:]) > clean + 30 and clean < 50
    assert found['mce'] == pytest.approx((clean * 72 + sum(errors['fog'][2:])) / 75)    # without spatter
    assert found['source'] == str(tmp_path)


def write_published(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    np.save(folder / 'labels.npy', np.tile(labels, 5))
    for name in CORRUPTIONS:
        np.save(folder / f'{name}.npy', np.tile(images, (5, 1, 1, 1)))


def test_the_mean_is_over_the_fifteen() -> None:
    errors = {name: [float(i)] * 5 for i, name in enumerate(CORRUPTIONS)}
    assert mean_corruption_error({**errors, 'spatter': [1e9] * 5}) == pytest.approx(7.)


@pytest.mark.slow
def test_our_corruptions_table_and_picture(
        trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('matplotlib')
    picture = tmp_path / 'a.png'
    assert main(['eval', str(trained), '--data', 'digits', '--corruptions', '--attack', 'fgsm', '--device', 'cpu',
                 '--plot', str(picture)]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert all(len(lines[name]) == 8 for name in CORRUPTIONS)
    rows = np.array([[float(cell) for cell in lines[name][2:]] for name in CORRUPTIONS])
    np.testing.assert_allclose(rows[:, :5].mean(1), rows[:, 5], atol=0.011)
    mean = next(line.split()[-1] for line in out.splitlines() if line.startswith('mean of the fifteen'))
    assert float(mean) == pytest.approx(rows[:, 5].mean(), abs=0.011)
    assert rows[:, 4].mean() > rows[:, 0].mean() + 5
    assert 'not the official set' in out and 'FGSM' in out and picture.stat().st_size > 20_000


def test_the_same_seed_gives_the_same_images() -> None:
    batches = [(torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), torch.zeros(3).long()) for _ in range(2)]
    first, again, other = ([images for images, _ in corrupted(batches, 'snow', 3, seed)] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and not torch.equal(first[0], other[0])


@pytest.mark.parametrize(('argv', 'said'), [
    (['--radius', '8'], 'give --attack pgd'),
    (['--attack', 'fgsm', '--steps', '3'], 'fgsm has one'),
    (['--attack', 'pgd', '--steps', '0'], 'steps is 0'),
    (['--attack', 'pgd', '--radius', '-1'], 'radius is -1'),
    (['--attack', 'pgd', '--radius', 'nan'], 'radius is nan'),
    (['--attack', 'cw'], "'cw'"),
    (['--plot', 'a.png'], 'give one of them'),
    (['--corruptions', '--plot', 'a.bmp'], 'a.bmp'),
    (['--corruptions', '--plot', '/no/such/a.png'], '/no/such'),
    (['--corruptions', '/no/such'], '/no/such/labels.npy'),
    (['--corruptions', '--device', 'cuda:77'], 'cuda:77'),
])
def test_a_mistake_is_one_line(
        argv: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip('sklearn')
    save_weights(timm.create_model('cct_2_3x2', num_classes=10).state_dict(), tmp_path / 'w.safetensors')
    assert said in complaint(capsys, f'cct_2_3x2={tmp_path}/w.safetensors', '--data', 'digits', *argv)


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    try:
        code = main(['eval', *argv])
    except SystemExit as e:
        code = int(str(e.code))
    out, err = capsys.readouterr()
    assert (code, out, err.count('\n')) == (2, '', 1), err
    return err


@pytest.mark.parametrize(('change', 'said'), [
    (lambda folder: (folder / 'fog.npy').unlink(), 'lacks fog.npy'),
    (lambda folder: (folder / 'fog.npy').write_bytes(b'not an array'), 'fog.npy'),
    (lambda folder: np.save(folder / 'fog.npy', np.zeros((4, 8, 8, 3), np.uint8)), 'expected uint8 [10, H, W, 3]'),
    (lambda folder: np.save(folder / 'labels.npy', np.arange(9)), 'five severities'),
    (lambda folder: np.save(folder / 'labels.npy', np.full(10, 12)), 'the model has 10'),
])
def test_a_damaged_published_set_is_named(change: Any, said: str, tmp_path: Path) -> None:
    write_published(tmp_path, np.zeros((2, 8, 8, 3), np.uint8), np.array([3, 9]))
    assert open_published(tmp_path, 10).split('fog', 5).labels.tolist() == [3, 9]
    change(tmp_path)
    with pytest.raises(Exception) as error:
        open_published(tmp_path, 10)
    assert type(error.value).__name__ == 'ZooError' and said in str(error.value) and '\n' not in str(error.value)
