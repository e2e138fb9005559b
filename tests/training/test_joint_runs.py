"""Runs of the joint-embedding methods: recipes as the papers have them, resumed to the same bits, and what is refused.
"""
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from augment_cases import MEAN, STD, batch, generator, to_pil
from joint_cases import encoder_of
from training_cases import assert_same_bits, stop_at, weights, write_npz

from tinyvit_zoo.augment.spec import AugmentSpec
from tinyvit_zoo.cli import pretrain
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.data.datasets import DATASETS
from tinyvit_zoo.methods import MoCoV3, SelfSupervised
from tinyvit_zoo.recipes import PRETRAINING_PRESETS, PRETRAININGS, RECIPES, find_pretraining
from tinyvit_zoo.training import run_dir
from tinyvit_zoo.training.optimizer import learning_rate, weight_decay
from tinyvit_zoo.training.train import check_recipe

TINY = {'self_distill': ['--model', 'ssl_vit', '--model-args', "{'depth': 2, 'embed_dim': 24, 'num_heads': 2}",
                         '--method-args', "{'local_views': 2, 'hidden_dim': 16, 'num_prototypes': 24}"],
        'moco_v3': ['--model', 'cct_2_3x2', '--method-args', "{'hidden_dim': 32, 'dim': 16}"]}
JOINT = [name for name, recipe in PRETRAININGS.items() if recipe.method in TINY]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_npz(tmp_path_factory.mktemp('data') / 'images.npz', train=64)


@pytest.fixture(scope='module')
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that were never stopped, by their method."""
    folder = tmp_path_factory.mktemp('finished')

    def path(method: str) -> Path:
        if not (folder / method).exists():
            assert run(method, data, folder / method) == 0
        return folder / method

    return path


def run(method: str, data: str, output: Path, *more: str) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(['pretrain', method, *TINY[method], '--data', data, '--output', str(output), '--device', 'cpu',
                     '--precision', 'fp32', '--img-size', '16', '--epochs', '2', '--batch-size', '16', *more])
    except SystemExit as e:
        return int(e.code or 0)
    finally:
        torch.set_num_threads(before)


# -- runs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('method', TINY)
def test_stopped_and_resumed_it_ends_with_the_same_bits(
        method: str, data: str, finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    """Momentum networks, centre, temperature, generators included."""
    whole = finished(method)
    with monkeypatch.context() as patched:
        stop_at(patched, 6, signal.SIGTERM)
        assert run(method, data, tmp_path / 'run') == 128 + signal.SIGTERM
    state = run_dir.load_checkpoint(tmp_path / 'run', print)
    assert state and state['step'] == 6
    assert run(method, data, tmp_path / 'run', '--resume') == 0
    assert_same_bits(whole, tmp_path / 'run')
    ends = [run_dir.load_checkpoint(folder, print) for folder in (whole, tmp_path / 'run')]
    assert ends[0] and ends[1] and all(
        torch.equal(tensor, ends[1]['network'][name]) for name, tensor in ends[0]['network'].items())
    assert 'k-NN accuracy' in capsys.readouterr().out


@pytest.mark.parametrize('method', TINY)
def test_streamed_images(method: str, data: str, tmp_path: Path) -> None:
    assert run(method, data, tmp_path / 'run', '--loader', 'stream', '--workers', '0', '--epochs', '1',
               '--warmup-epochs', '0') == 0


def test_streamed_views_are_distributed_as_the_batched_ones() -> None:
    recipe = replace(PRETRAINING_PRESETS['moco_v3'], crop_scale=(0.5, 1.))
    cfg = {'input_size': (3, 24, 24), 'mean': MEAN, 'std': STD}
    image, n = batch(1, 32, 32), 600
    views = MoCoV3(encoder_of('cct_2_3x2'), 16, 8).views(AugmentSpec.of(recipe, cfg))
    streamed = views.pillow()
    random.seed(0)
    theirs = torch.stack([streamed(to_pil(image[0])) for _ in range(n)])
    ours, = views(image.expand(n, -1, -1, -1), generator())
    shared, = views(theirs, generator())
    assert ours.shape == shared.shape == (2, n, 3, 24, 24)
    for got, want in zip(shared, ours, strict=True):
        assert (got.mean(0) - want.mean(0)).abs().max() < 0.35 and (got.mean() - want.mean()).abs() < 0.07
        assert (got.std(0) - want.std(0)).abs().mean() < 0.05


def test_the_teacher_is_kept_and_fine_tunes(data: str, finished: Callable[[str], Path], tmp_path: Path) -> None:
    encoder = finished('self_distill')
    state, kept = run_dir.load_checkpoint(encoder, print), weights(encoder)
    assert state and kept
    for name, tensor in kept.items():
        assert torch.equal(tensor, state['network'][f'teacher_encoder.{name}'])
    assert any(not torch.equal(tensor, state['network'][f'encoder.{name}']) for name, tensor in kept.items())
    assert state['network']['centre'].any() and not any(name.startswith(('head', 'teacher')) for name in kept)
    assert main(['train', '--from', str(encoder), '--data', data, '--output', str(tmp_path / 'classifier'),
                 '--device', 'cpu', '--epochs', '1', '--warmup-epochs', '0', '--lr', '0', '--batch-size', '32']) == 0
    for name, tensor in weights(tmp_path / 'classifier').items():
        assert name.startswith('head') or torch.equal(tensor, kept[name])


def test_images_of_digits_are_not_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flips: list[float] = []
    monkeypatch.setattr(pretrain, 'train', lambda recipe, options, world: flips.append(recipe.flip))
    for source, more in (('digits', []), ('digits', ['--flip', '0.3']), ('cifar10:x', [])):
        assert run('moco_v3', source, tmp_path, *more) == 0
    assert flips == [0., 0.3, 0.5]


@pytest.mark.parametrize('method, more, said', [
    ('moco_v3', ['--accumulate', '2'], 'use accumulate 1'), ('moco_v3', ['--batch-size', '1'], 'batch_size of 2'),
    ('self_distill', ['--method-args', "{'local_view': 2}"], 'local_views'),
    ('self_distill', ['--img-size', '6'], 'does not take local views of 3 x 3 pixels'),
    ('self_distill', ['--model', 'mae_lite_vit_tiny_rpe', '--model-args', '{}', '--img-size', '32'],
     'use mae_lite_vit_tiny'),
    ('moco_v3', ['--model-args', "{'global_pool': ''}"], 'not pooled')])
def test_what_cannot_be_run_is_refused(
        method: str, more: list[str], said: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(method, data, tmp_path / 'run', *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1 and not os.listdir(tmp_path)


# -- recipes -----------------------------------------------------------------------------------------------------------
def test_every_data_set_of_the_paper_has_its_recipes() -> None:
    wanted = [f'ssl_{model}{"_64" * (dataset == "timnet")}.{dataset}_selfdistill' for model in ('vit', 'swin', 'cait')
              for dataset in ('c10', 'c100', 'svhn', 'timnet', 'cinic10')]
    assert sorted(JOINT) == sorted([
        *wanted, 'ssl_vit.c10_selfdistill_100e', 'mae_lite_vit_tiny.in1k_moco3_400e'])
    begun = {recipe.from_weights for recipe in RECIPES.values()}
    assert begun >= set(JOINT)
    for name in JOINT:
        check_recipe(find_pretraining(name))
        assert find_pretraining(name).dataset in DATASETS


@pytest.mark.parametrize('name, size, whole, local', [
    ('ssl_vit.c10_selfdistill', 32, (0.7, 1.), (0.2, 0.5)), ('ssl_swin.c100_selfdistill', 32, (0.7, 1.), (0.2, 0.5)),
    ('ssl_vit_64.timnet_selfdistill', 64, (0.5, 1.), (0.2, 0.4))])
def test_self_distillation_as_the_paper_has_it(
        name: str, size: int, whole: tuple[float, float], local: tuple[float, float]) -> None:
    recipe = find_pretraining(name)
    cfg = {'input_size': (3, size, size), 'mean': (0.5,) * 3, 'std': (0.2,) * 3}
    method = SelfSupervised.make_network(recipe, cfg, torch.device('cpu'))
    assert (method.local_views, method.local_scale, method.local_size) == (8, local, (size // 2, size // 2))
    views = method.views(AugmentSpec.of(recipe, cfg))
    first, second = views(torch.zeros(2, 3, size, size, dtype=torch.uint8), torch.Generator())
    assert first.shape == (2, 2, 3, size, size) and second.shape == (8, 2, 3, size // 2, size // 2)
    assert recipe.crop_scale == whole and recipe.crop_interpolation == 'bicubic'
    assert [learning_rate(recipe, epoch) for epoch in (0, 15, 30, 115, 200)] == pytest.approx(
        [0., 1e-4, 2e-4, (2e-4 + 1e-6) / 2, 1e-6])
    assert [weight_decay(recipe, epoch) for epoch in (0, 100, 200)] == pytest.approx([0.04, 0.22, 0.4])
    assert (recipe.batch_size, recipe.clip, recipe.clip_mode, recipe.opt) == (512, 3., 'tensor', 'adamw')
    steps = 200 * 97  # of a training
    method.before_step(97 / steps)
    for epoch, temperature in ((0, 0.04), (5, 0.055), (10, 0.07), (150, 0.07)):
        method._outputs.append((torch.zeros(1024), 1))
        method.after_step(epoch / 200)
        assert method.temperature.item() == pytest.approx(temperature)
    for epoch, waits in ((0.99, True), (1., False)):
        method.head.directions.grad = torch.zeros_like(method.head.directions)
        method.before_step(epoch / 200)
        assert (method.head.directions.grad is None) == waits


def test_what_is_not_mirrored_and_how_sets_are_normalised() -> None:
    for name in JOINT:
        recipe = find_pretraining(name)
        assert recipe.flip == (0. if recipe.dataset == 'svhn' else 0.5)
        fine_tuned = next(r for r in RECIPES.values() if r.from_weights == name)
        assert (recipe.mean, recipe.std, recipe.img_size) == (fine_tuned.mean, fine_tuned.std, fine_tuned.img_size)


def test_moco_as_the_paper_has_it() -> None:
    recipe = find_pretraining('mae_lite_vit_tiny.in1k_moco3_400e')
    assert learning_rate(recipe, 40) == pytest.approx(1.5e-4 * 1024 / 256) and learning_rate(recipe, 400) == 0.
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size, recipe.img_size) == (400, 40, 1024, 224)
    assert (recipe.betas, recipe.weight_decay, recipe.crop_scale) == ((0.9, 0.999), 0.1, (0.08, 1.))
    assert set(TINY) <= set(PRETRAINING_PRESETS)
