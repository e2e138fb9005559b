"""Supervised training: distillation, whitening, growing images."""
import itertools
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from training_cases import assert_same_bits, read_checkpoint, run, stop_at, weights

import tinyvit_zoo as zoo
from tinyvit_zoo import ZooError
from tinyvit_zoo.methods.supervised import Supervised, size_at, whiten_first_conv
from tinyvit_zoo.methods.teacher import Teacher, distillation_loss
from tinyvit_zoo.recipes import Recipe
from tinyvit_zoo.training.run_dir import checkpoints
from tinyvit_zoo.weights import read_weights, save_weights
from tinyvit_zoo.weights.files import read_metadata
from tinyvit_zoo.weights.readout import Readout

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def teacher(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('teacher') / 'run'
    assert run(data, folder, '--ema', '0', '--whiten', 'true', model='fast_cnn_half') == 0
    return folder


# -- distillation ------------------------------------------------------------------------------------------------------
def test_the_loss_is_the_divergence_of_softened_outputs() -> None:
    student, logits = torch.randn(2, 5, 4, dtype=torch.float64)
    p, q = (logits / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(student, logits, 3.), expected)
    assert distillation_loss(logits, logits, 3.).abs() < 1e-12


def test_the_teacher_sees_the_images_as_it_was_trained_on_them(tmp_path: Path) -> None:
    model = timm.create_model('fast_cnn_half', num_classes=4).eval()
    file = tmp_path / 'teacher.safetensors'
    save_weights(model.state_dict(), file, {
        'recipe': 'fast_cnn_half.mine',
        'pretrained_cfg': json.dumps({'num_classes': 4, 'input_size': (3, 32, 32), 'mean': (0.1, 0.2, 0.3),
                                      'std': (0.4, 0.5, 0.6), 'label_names': ('a', 'b', 'c', 'd')})})
    cfg = {'num_classes': 4, 'label_names': ['a', 'b', 'c', 'd'], 'mean': (0.5, 0.6, 0.7), 'std': (0.2, 0.3, 0.1)}
    pixels = torch.rand(2, 3, 32, 32)
    first, second = (torch.tensor(values)[:, None, None] for values in (cfg['mean'], cfg['std']))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    teach = Teacher(str(file), cfg, CPU, None)
    expected = model((pixels - mean) / std)
    torch.testing.assert_close(teach((pixels - first) / second), expected, atol=1e-5, rtol=1e-4)
    small = F.interpolate(pixels, size=(24, 24), mode='bilinear', antialias=True)
    assert teach((small - first) / second).shape == (2, 4)
    with pytest.raises(ZooError, match='has 4 classes, but the images have 3'):
        Teacher(str(file), {**cfg, 'num_classes': 3}, CPU, None)
    with pytest.raises(ZooError, match=r'has other classes \(a, b, c, ...\) than'):
        Teacher(str(file), {**cfg, 'label_names': ['a', 'b', 'd', 'c']}, CPU, None)


def test_a_student_is_trained_and_resumed_to_the_same_bits(
        data: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    """And not by another teacher under the same name."""
    file, original = tmp_path / 'teacher.safetensors', teacher / 'weights.safetensors'
    shutil.copy(original, file)
    options = ['--teacher', f'fast_cnn_half={file}', '--sizes', '(12, 16)', '--whiten', 'true']
    assert run(data, tmp_path / 'whole', *options) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 5, signal.SIGTERM)
        assert run(data, tmp_path / 'parts', *options) == 128 + signal.SIGTERM
    assert not any('teacher' in key for key in read_checkpoint(checkpoints(tmp_path / 'parts')[-1])['network'])
    other = {key: value + (value.is_floating_point() and 1e-3) for key, value in read_weights(original).items()}
    save_weights(other, file, read_metadata(original))
    assert run(data, tmp_path / 'parts', '--resume', *options) == 2
    assert 'weights or options (teacher' in capsys.readouterr().err
    stated = read_metadata(original)
    cfg = json.dumps({**json.loads(stated['pretrained_cfg']), 'mean': [0.1, 0.1, 0.1]})
    save_weights(read_weights(original), file, {**stated, 'pretrained_cfg': cfg})   # normalizes otherwise
    assert run(data, tmp_path / 'parts', '--resume', *options) == 2
    assert 'weights or options (teacher_mean' in capsys.readouterr().err
    shutil.copy(original, file)
    assert run(data, tmp_path / 'parts', '--resume', *options) == 0
    assert_same_bits(tmp_path / 'whole', tmp_path / 'parts')
    assert run(data, tmp_path / 'alone', *options[2:]) == 0
    assert any(not torch.equal(a, b) for a, b in zip(
        weights(tmp_path / 'alone').values(), weights(tmp_path / 'whole').values(), strict=True))


@pytest.mark.parametrize('options, words', [
    (['--teacher', 'fast_cnn_half.untrained'], 'has no weights'),
    (['--teacher', 'cct_2_3x2.digits'], 'has 10 classes, but the images have 4'),
    (['--teacher', 'no_model'], 'There is no model'),
    (['--teacher', 'cct_2_3x2=SEVERAL'], 'gives several labels per image'),
    (['--sizes', '(24, 32)'], r'its last must be img_size, 16'),
    (['--sizes', '(0, 16)'], 'sizes is 0'),
    (['--sizes', '(12.5, 16)'], 'sizes is 12.5, expected a whole number'),
    (['--sizes', '16'], r'expected a value like \(24, 28, 32\)'),
    (['--whiten', 'true', '--from-weights', 'cct_2_3x2.digits'], 'give only one of them'),
])
def test_bad_values_are_one_line_and_leave_nothing(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    several = tmp_path / 'several.safetensors'
    save_weights(timm.create_model('cct_2_3x2', num_classes=4).state_dict(), several, {
        'pretrained_cfg': json.dumps({'num_classes': 4}), **Readout(multi_label=True).metadata})
    assert run(data, tmp_path / 'run', *(option.replace('SEVERAL', str(several)) for option in options)) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and re.search(words, error), error
    assert not (tmp_path / 'run').exists()


def test_a_teacher_that_the_memory_does_not_hold(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('tinyvit_zoo.measure.counting.free_memory', lambda device: 2 ** 30)
    large = tmp_path / 'large.safetensors'
    save_weights(timm.create_model('cct_2_3x2', num_classes=4).state_dict(), large, {
        'pretrained_cfg': json.dumps({'input_size': [3, 2048, 2048]})})
    assert run(data, tmp_path / 'run', '--teacher', f'cct_2_3x2={large}') == 2
    assert re.search('cct_2_3x2=.* at 2048 pixels takes about .* GiB', capsys.readouterr().err)


# -- growing images ----------------------------------------------------------------------------------------------------
def test_sizes_share_the_epochs() -> None:
    recipe = Recipe(name='cct_2_3x2.mine', about='', epochs=5, cooldown_epochs=1, sizes=(24, 28, 32))
    assert [size_at(recipe, epoch) for epoch in range(6)] == [24, 24, 28, 28, 32, 32]
    assert size_at(Recipe(name='cct_2_3x2.mine', about='', img_size=40), 299) == 40


def test_sizes_that_a_model_cannot_take(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, tmp_path / 'run', '--sizes', '(8, 16)', model='fast_cnn') == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'cannot take images of 8 pixels from sizes (8, 16)' in error
    assert not (tmp_path / 'run').exists()


# -- whitening ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name, filters', [('fast_cnn', 24), ('cct_2_3x2', 54)])
def test_whitened_patches_are_uncorrelated(name: str, filters: int) -> None:
    model = timm.create_model(name)
    conv: nn.Conv2d = model.get_submodule(model.pretrained_cfg['first_conv'])
    random = conv.weight.detach().clone()
    images = F.avg_pool2d(torch.randn(500, 3, 34, 34), 3, 1)       # neighbours are alike
    whiten_first_conv(model, images)
    assert torch.equal(conv.weight[filters:], random[filters:]) and not conv.weight.requires_grad
    half = filters // 2
    assert torch.equal(conv.weight[:half], -conv.weight[half:filters])
    outputs = F.conv2d(images, conv.weight[:half]).transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 1e-2
    assert covariance.diagonal()[0] > 0.99 and covariance.diagonal().max() < 1.01


def test_whitening_needs_a_convolution() -> None:
    with pytest.raises(ZooError, match='LocalViT does not begin with a convolution'):
        whiten_first_conv(timm.create_model('sl_vit', depth=1), torch.randn(2, 3, 32, 32))


def test_the_head_of_the_start_follows_the_names_of_its_classes(tmp_path: Path) -> None:
    draw = np.random.RandomState(0)
    images, labels = draw.randint(0, 256, (24, 16, 16, 3)).astype(np.uint8), np.arange(24) % 3
    options: dict[str, Any] = dict(img_size=16, batch_size=8, epochs=1, warmup_epochs=0, device='cpu', auto_augment='')
    one = zoo.train('cct_2_3x2.untrained', {'train': (images, labels), 'class_names': list('abc')},
                    output=tmp_path / 'one', **options)
    turned = {'train': (images, (labels + 1) % 3), 'class_names': list('cab')}
    two = zoo.train(one, turned, output=tmp_path / 'two', lr=0., **options)
    assert torch.equal(two.model.head.weight, one.model.head.weight[[2, 0, 1]])
    assert two.evaluate(turned).loss == pytest.approx(one.evaluate(turned).loss, abs=1e-6)
    three = zoo.train(one, {**turned, 'class_names': list('xyz')}, output=tmp_path / 'three', lr=0., **options)
    assert torch.equal(three.model.head.weight, one.model.head.weight)      # as timm does


# -- classes of unequal size -------------------------------------------------------------------------------------------
def test_rare_classes_count_as_much_in_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are inverse to the classes' images, and 1 in the mean over the images."""
    draw = np.random.RandomState(0)
    np.savez(tmp_path / 'a.npz', train_images=draw.randint(0, 256, (40, 16, 16, 3)).astype(np.uint8),
             train_labels=np.array([0] * 28 + [1] * 8 + [2] * 4), test_labels=np.array([0, 1]),
             test_images=np.zeros((2, 16, 16, 3), np.uint8))
    seen = []
    loss = Supervised.loss
    monkeypatch.setattr(Supervised, 'loss', lambda task, *args: seen.append(task.class_weights) or loss(task, *args))
    for balance in ('none', 'loss', 'sampling'):
        assert run(f'npz:{tmp_path / "a.npz"}', tmp_path / balance, '--balance', balance) == 0
    assert seen[0] is None and seen[-1] is None
    torch.testing.assert_close(seen[len(seen) // 2], 40 / 3 / torch.tensor([28., 8., 4.]))
    results = [weights(tmp_path / balance)['head.weight'] for balance in ('none', 'loss', 'sampling')]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(results, 2))
