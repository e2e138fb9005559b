"""k-NN, probe and spread of features whose answers are known."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import tinyvit_zoo  # noqa: F401
from tinyvit_zoo.data.images import ArrayImages, FileImages
from tinyvit_zoo.data.splits import Split
from tinyvit_zoo.measure import bench as under_test
from tinyvit_zoo.measure.bench import STRENGTHS, _path, extract, knn, probe, spread
from tinyvit_zoo.measure.prediction import _read
from tinyvit_zoo.runtime.world import World

ALONE = World(0, 1, torch.device('cpu'))


def on_circle(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], 1)


# -- images ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('changes', [
    {}, {'crop_pct': 0.6}, {'interpolation': 'bilinear'}, {'crop_mode': 'squash'},
    {'crop_pct': 0.875, 'input_size': (3, 16, 24)}, {'input_size': (1, 16, 16), 'mean': (0.5,), 'std': (0.2,)},
], ids=str)
def test_images_in_memory_are_those_of_timms_transform(changes: dict[str, Any], tmp_path: Path) -> None:
    """Images of 16 bits are cropped too, also where they are streamed, as by `predict`."""
    draws = np.random.default_rng(0)
    for i, shape in enumerate([(30, 40), (41, 23), (16, 16), (12, 50)]):
        Image.fromarray(draws.integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / f'{i}.png')
    images = FileImages(tmp_path, ['3.png', '0.png', '1.png', '2.png'])
    split = Split(images, torch.arange(4), torch.tensor([1, 2, 3, 0]))
    cfg = {'input_size': (3, 16, 16), 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4), 'crop_pct': 1.,
           'interpolation': 'bicubic', **changes}
    (memory, _), = under_test.evaluation_batches(split, 4, cfg, ALONE, 'memory')
    (stream, labels), = under_test.evaluation_batches(split, 4, cfg, ALONE, 'stream', workers=0)
    torch.testing.assert_close(memory, stream, rtol=0, atol=2e-6)
    assert labels.tolist() == [0, 1, 2, 3]
    if cfg['input_size'][0] == 3 and 'crop_mode' not in cfg:
        deep = torch.from_numpy(draws.integers(0, 65536, (2, 21, 34, 3), np.int32))
        split = Split(ArrayImages(deep, 'deep'), torch.arange(2))
        (memory, _), = under_test.evaluation_batches(split, 2, cfg, ALONE, 'memory')
        (stream, _), = under_test.evaluation_batches(split, 2, cfg, ALONE, 'stream', workers=0)
        predicted = [_read(image.numpy().astype(np.uint16), None, cfg) for image in deep]
        assert torch.equal(memory, stream) and torch.equal(memory, torch.stack(predicted))


# -- k-NN ------------------------------------------------------------------------------------------------------------
def test_nearest_neighbour_goes_by_angle_and_not_by_length() -> None:
    bank = on_circle(0, 90) * torch.tensor([[1.], [50.]])
    labels = torch.tensor([0, 1])
    queries = on_circle(40, 50, 10) * torch.tensor([[9.], [.1], [1.]])
    assert knn(bank, labels, queries, torch.tensor([0, 1, 0]), k=1, num_classes=2) == 100.
    assert knn(bank, labels, queries, torch.tensor([1, 1, 0]), k=1, num_classes=2) == pytest.approx(200 / 3)


@pytest.mark.parametrize('temperature, expected', [(0.01, 100.), (10., 0.)])
def test_temperature_decides_between_one_near_and_two_far(temperature: float, expected: float) -> None:
    """One neighbour of class 0 at 5 degrees, two of class 1 at 60: cold, the near one wins; hot, the two."""
    bank, labels = on_circle(5, 60, -60, 180), torch.tensor([0, 1, 1, 0])
    assert knn(bank, labels, on_circle(0), torch.tensor([0]), 3, temperature, num_classes=2) == expected


def test_against_the_definition_in_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the test images come in several chunks, and more neighbours are asked for than there are."""
    bank, queries = torch.randn(50, 8), torch.randn(33, 8)
    labels, truth = torch.randint(5, (50,)), torch.randint(5, (33,))
    monkeypatch.setattr(under_test, '_CHUNK', 500)
    for k in (1, 7, 50, 80):
        right = 0
        for query, answer in zip(queries, truth, strict=True):
            near = sorted(((F.cosine_similarity(query, x, dim=0).item(), int(y)) for x, y in
                           zip(bank, labels, strict=True)), reverse=True)[:k]
            votes = [sum(math.exp(s / 0.07) for s, y in near if y == c) for c in range(5)]
            right += votes.index(max(votes)) == answer
        assert knn(bank, labels, queries, truth, k, num_classes=5) == pytest.approx(100 * right / 33)


# -- spread ----------------------------------------------------------------------------------------------------------
def test_spread_is_one_for_noise_and_nought_for_a_collapse() -> None:
    noise = torch.randn(4000, 64)
    assert spread(noise) == pytest.approx(1, abs=0.02)
    assert spread(noise * 1e3) == pytest.approx(spread(noise))
    assert spread(torch.randn(1, 64).expand(100, -1)) == pytest.approx(0, abs=1e-5)
    assert spread(noise[:, :1] * torch.randn(1, 64)) > 0.5      # two opposite directions are no collapse
    assert spread(10 + noise) < 0.15                            # one direction, with a little around it, nearly is


# -- extraction ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'resnet18'])
def test_features_are_what_the_classifier_sees(name: str) -> None:
    model = timm.create_model(name, num_classes=4, **({'img_size': 32} if 'vit' in name else {})).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = [(torch.randn(n, 3, 32, 32), torch.arange(n)) for n in (3, 2)]
    x, y = extract(model, [(2 * images, labels) for images, labels in batches], ALONE)
    assert y.tolist() == [0, 1, 2, 0, 1] and x.shape == (5, model.num_features) and not x.requires_grad
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        model.eval()
        whole = torch.cat([model(images * 2) for images, _ in batches])
        torch.testing.assert_close(model.get_classifier()(x), whole)


def test_number_format_is_that_of_the_autocast_and_features_are_float32() -> None:
    model = timm.create_model('cct_2_3x2', img_size=16)
    batches = [(torch.randn(4, 3, 16, 16), torch.arange(4))]
    plain, _ = extract(model, batches, ALONE)
    short, _ = extract(model, batches, ALONE, torch.bfloat16)
    assert short.dtype == torch.float32 and not torch.equal(plain, short)
    torch.testing.assert_close(plain, short, atol=0.1, rtol=0.1)


def test_features_of_any_encoder_tell_bright_from_dark() -> None:
    model = timm.create_model('cct_2_3x2', img_size=16)
    labels = torch.arange(40) % 2
    images = torch.randn(40, 3, 16, 16) * 0.1 + (2. * labels - 1)[:, None, None, None]
    bank = extract(model, [(images[:20], labels[:20])], ALONE)
    features, classes = extract(model, [(images[20:], labels[20:])], ALONE)
    assert [knn(*bank, features, y, num_classes=2) for y in (classes, 1 - classes)] == [100., 0.]


# -- linear probe ----------------------------------------------------------------------------------------------------
def blobs(count: int, classes: int, noise: float, dim: int = 12) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(1))
    return 1000 + 0.01 * (centres[labels] + noise * torch.randn(count, dim)), labels


def test_probe_is_the_logistic_regression_of_scikit_learn() -> None:
    """At one strength, on standardised features, and told apart by raw ones far from 0 and small in scale."""
    linear_model = pytest.importorskip('sklearn.linear_model')
    x, y = blobs(200, 4, 1.)
    weights = _path(x, y, 4, (1e-1, 1e-2))[-1]
    scaled = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    theirs = linear_model.LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-8, max_iter=2000).fit(scaled, y)
    ours = (x.double() @ weights[:-1] + weights[-1]).softmax(1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs.predict_proba(scaled)), atol=2e-3, rtol=0)


def test_probe_finds_what_is_there_and_the_strength_fits_the_data() -> None:
    clear, noisy = blobs(400, 4, 0.1), blobs(400, 4, 8.)
    assert probe(*clear, *blobs(100, 4, 0.1), num_classes=4)['top1'] == 100.
    x = torch.cat([torch.randn(60, 100), torch.zeros(60, 1)], 1)        # more dimensions than images; one constant
    x[:, 0] += 2. * (torch.arange(60) % 2)
    weak = probe(x, torch.arange(60) % 2, x, torch.arange(60) % 2, num_classes=2)
    assert weak['l2'] >= 1e-2 and math.isfinite(weak['top1'])
    assert probe(*noisy, *blobs(100, 4, 8.), num_classes=4)['l2'] in STRENGTHS


def test_what_is_judged_chooses_nothing_and_the_same_comes_out_again() -> None:
    (x, y), (a, b) = blobs(200, 4, 3.), blobs(100, 4, 3.)
    first = probe(x, y, a, b, num_classes=4)
    assert probe(x, y, a, b, num_classes=4) == first
    wrong = probe(x, y, a, (b + 1) % 4, num_classes=4)
    assert wrong['l2'] == first['l2'] and wrong['top1'] < first['top1']


def test_probe_of_one_image_a_class() -> None:
    x, y = blobs(4, 4, 0.1)
    assert probe(x, y, *blobs(40, 4, 0.1), num_classes=4)['top1'] == 100.


# -- many processes --------------------------------------------------------------------------------------------------
def test_features_of_all_processes_come_together() -> None:
    class Two(World):
        def gather(self, value: list) -> list:
            return [value, [(x + 100, y + 10) for x, y in value]]

    model = timm.create_model('cct_2_3x2', img_size=16)
    batches = [(torch.randn(2, 3, 16, 16), torch.arange(2))]
    one, _ = extract(model, batches, ALONE)
    x, y = extract(model, batches, Two(0, 2, torch.device('cpu')))
    assert torch.equal(x, torch.cat([one, one + 100])) and y.tolist() == [0, 1, 10, 11]
