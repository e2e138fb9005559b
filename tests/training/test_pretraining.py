"""Pre-training by the command: what it leaves, resumes, chains, processes, and what it refuses."""
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from forked import Server
from training_cases import assert_same_bits, read_checkpoint, weights, write_npz

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.methods import SelfSupervised, self_supervised
from tinyvit_zoo.recipes import PRETRAININGS, RECIPES, Pretraining, mae_lite, mae_small, presets as own
from tinyvit_zoo.training import loop, run_dir
from tinyvit_zoo.training.optimizer import learning_rate, make_optimizer, set_learning_rate, weight_decay
from tinyvit_zoo.training.train import check_recipe, write_weights

HERE = Path(__file__).parents[1]
MODEL = ['--model', 'vit_lite_2_4', '--img-size', '16', '--model-args',
         "{'embed_dim': 32, 'attn_drop_rate': 0., 'drop_path_rate': 0.}"]
PLAIN = ['--device', 'cpu', '--precision', 'fp32']
SETTINGS = [*PLAIN, '--epochs', '2', '--batch-size', '16', '--warmup-epochs', '1', '--lr', '2e-3',
            '--method-args', "{'decoder_dim': 24}"]


def run(*argv: str) -> int:
    torch.set_num_threads(1)
    try:
        return main(list(argv))
    except SystemExit as e:
        return int(e.code or 0)


def pretrained(data: str, output: Path, *more: str, method: str = 'mae_small') -> int:
    return run('pretrain', method, '--data', data, '--output', str(output), *MODEL, *SETTINGS, *more)


@pytest.fixture(scope='module')
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp('run') / 'whole'
    assert pretrained(data, output, '--eval-every', '1') == 0
    return output


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, steps_in_all: int) -> None:
    """A signal in the middle of a step of the training that has so many."""
    whole = loop.Loop.train_step

    def step_and_signal(self: loop.Loop, *args: torch.Tensor) -> None:
        whole(self, *args)
        if self.step + 1 == step and self.total_steps == steps_in_all:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Loop, 'train_step', step_and_signal)


# -- the run directory -------------------------------------------------------------------------------------------------
def test_what_a_pretraining_leaves(finished: Path) -> None:
    left = {path.name for path in finished.iterdir()}
    assert left >= {'recipe.json', 'log.jsonl', 'train.log', 'curves.png', 'weights.safetensors', 'result.json',
                    'card.md', 'reconstructions'}
    rows = [json.loads(line) for line in (finished / 'log.jsonl').read_text().splitlines()]
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    assert all(0 <= row['knn_top1'] <= 100 and row['spread'] > 0 for row in rows)
    figures = json.loads((finished / 'result.json').read_text())['figures']['knn']
    assert figures['last']['knn_top1'] == rows[-1]['knn_top1'] and figures['untrained'] != figures['last']
    assert (finished / 'reconstructions' / '00000012.png').stat().st_size > 5000


def test_the_file_holds_the_encoder_alone(finished: Path) -> None:
    """It loads as an encoder, and as a classifier that begins with it."""
    names = weights(finished).keys()
    assert not any(name.startswith(('decoder', 'mask', 'head', 'encoder.')) for name in names)
    overlay = dict(file=str(finished / 'weights.safetensors'))
    encoder, classifier = (timm.create_model(
        'vit_lite_2_4', pretrained=True, pretrained_cfg_overlay=overlay, embed_dim=32, **classes)
        for classes in ({}, {'num_classes': 3}))
    assert encoder.num_classes == 0 and encoder.img_size == (16, 16) and classifier.num_classes == 3
    for name, tensor in weights(finished).items():
        assert torch.equal(encoder.state_dict()[name], tensor) and torch.equal(classifier.state_dict()[name], tensor)


@pytest.mark.parametrize('model', ['mae_lite_vit_tiny', 'mae_lite_vit_tiny_rpe', 'mae_vit_c10', 'sl_vit', 'ssl_vit'])
def test_encoders_of_every_family_come_back(model: str, tmp_path: Path) -> None:
    """From the file, into the classifier that a fine-tuning makes; all but what a classifier has in the norm's place.
    """
    size = 48 if 'lite' in model else 12
    recipe = Pretraining(name=f'{model}.x', about='', method='mae_lite', img_size=size, model_args={'depth': 2})
    method = SelfSupervised.make_network(recipe, {'input_size': (3,)}, torch.device('cpu'))
    cfg = {'num_classes': 0, 'input_size': (3, size, size), 'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    write_weights(tmp_path, recipe, cfg, method.kept().state_dict())
    classifier = timm.create_model(
        model, pretrained=True, num_classes=3, img_size=size, depth=2,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'weights.safetensors')))
    own_tensors = classifier.state_dict()
    for name, tensor in method.kept().state_dict().items():
        if not (name.startswith('norm.') and 'lite' in model):
            assert torch.equal(own_tensors[name], tensor), name


# -- resuming ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('method', ['mae_small', 'mae_lite'])
def test_a_stopped_pretraining_goes_on_to_the_same_bits(
        data: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    whole, output = finished if method == 'mae_small' else tmp_path / 'whole', tmp_path / 'stopped'
    if method != 'mae_small':
        assert pretrained(data, whole, method=method) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 8, 12)
        assert pretrained(data, output, '--eval-every', '1', method=method) == 128 + signal.SIGTERM
    assert run_dir.checkpoints(output)[-1].name == 'checkpoint-00000008.pt'
    assert pretrained(data, output, '--eval-every', '1', '--resume', method=method) == 0
    assert_same_bits(whole, output)


def test_another_seed_gives_another_encoder(data: str, finished: Path, tmp_path: Path) -> None:
    assert pretrained(data, tmp_path / 'other', '--seed', '1') == 0
    assert not torch.equal(weights(finished)['pos_embed'], weights(tmp_path / 'other')['pos_embed'])


def test_streamed_images_are_pretrained_on_too(data: str, tmp_path: Path) -> None:
    assert pretrained(data, tmp_path / 'run', '--loader', 'stream', '--workers', '0', '--epochs', '1',
                      '--warmup-epochs', '0') == 0


# -- chains ------------------------------------------------------------------------------------------------------------
CHAIN = ['--img-size', '12', '--model-args', "{'depth': 1}", '--epochs', '1', '--warmup-epochs', '0.2', '--batch-size',
         '128', '--lr', '1e-3', '--fraction', '0.3']
FIRST = ['--pretraining', 'img_size=12', 'epochs=2', 'batch-size=128',
         "method_args={'decoder_depth': 1}"]


@pytest.fixture(scope='module')
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp('chain') / 'whole'
    assert chain(output) == 0
    return output


def chain(output: Path, *more: str) -> int:
    return run(
        'train', 'mae_vit_c10.c10_100e', '--data', 'digits', '--output', str(output), *PLAIN, *CHAIN, *FIRST, *more)


def test_one_command_pretrains_and_fine_tunes(chained: Path) -> None:
    recipe = json.loads((chained / 'recipe.json').read_text())['recipe']
    assert recipe['from_weights'] == 'mae_vit_c10.c10_mae'
    first = json.loads((chained / 'pretraining' / 'recipe.json').read_text())['recipe']
    assert first['name'] == 'mae_vit_c10.c10_mae' and first['model_args'] == {'depth': 1}
    assert first['epochs'] == 2 and first['lr'] == mae_small.MAE_C10.lr
    assert first['warmup_epochs'] == pytest.approx(2 * mae_small.MAE_C10.warmup_epochs / mae_small.MAE_C10.epochs)
    assert json.loads((chained / 'result.json').read_text())['figures']['test']['images'] == 360
    assert weights(chained)['head.weight'].shape == (10, 192)


def test_a_fine_tuning_begins_with_the_encoder(chained: Path, tmp_path: Path) -> None:
    """By --from, which says the model, its structure and the size; with hardly a step, it is the encoder still."""
    begin = str(chained / 'pretraining')
    assert run('train', '--from', begin, '--data', 'digits', '--output', str(tmp_path / 'run'), *PLAIN, '--epochs', '1',
               '--warmup-epochs', '0', '--lr', '1e-9', '--batch-size', '256', '--fraction', '0.2') == 0
    tuned, begun = weights(tmp_path / 'run'), weights(chained / 'pretraining')
    assert all(torch.allclose(tuned[name], begun[name], rtol=0, atol=1e-6) for name in begun)
    assert tuned['head.weight'].shape[0] == 10


@pytest.mark.parametrize('step, steps', [(5, 6), (2, 3)])
def test_a_chain_goes_on_from_either_stage(
        chained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, steps: int) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, step, steps)
        assert chain(tmp_path / 'run') == 128 + signal.SIGTERM
    assert (tmp_path / 'run' / 'recipe.json').exists() == (steps == 3)
    assert chain(tmp_path / 'run') == 2  # without --resume
    assert chain(tmp_path / 'run', '--resume') == 0
    assert_same_bits(chained, tmp_path / 'run')
    assert_same_bits(chained / 'pretraining', tmp_path / 'run' / 'pretraining')


@pytest.mark.parametrize('name', ['weights.safetensors', 'result.json'])
def test_a_finished_run_that_lost_its_end_makes_it_again(
        name: str, finished: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / 'run')
    path = tmp_path / 'run' / name
    path.write_bytes(path.read_bytes()[:100])
    assert pretrained(data, tmp_path / 'run', '--resume') == 0
    assert 'Repeating the end' in capsys.readouterr().out
    assert_same_bits(finished, tmp_path / 'run')


def test_the_log_of_a_finished_run_is_that_of_its_checkpoint(finished: Path, data: str, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / 'run')
    log, whole = tmp_path / 'run' / 'log.jsonl', (finished / 'log.jsonl').read_text()
    log.write_text(whole.replace('1', '2'))
    assert pretrained(data, tmp_path / 'run', '--eval-every', '1', '--resume') == 0 and log.read_text() == whole
    for path in run_dir.checkpoints(tmp_path / 'run'):      # removed for their size
        path.unlink()
    assert pretrained(data, tmp_path / 'run', '--eval-every', '1', '--resume') == 0 and log.read_text() == whole


def test_a_damaged_recipe_is_one_line(finished: Path, data: str, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / 'run')
    for content in ('{', '[]', '{}'):
        (tmp_path / 'run' / 'recipe.json').write_text(content)
        assert run('train', '--from', str(tmp_path / 'run'), '--data', data, '--output', str(tmp_path / 'out')) == 2
        assert pretrained(data, tmp_path / 'run', '--resume') == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 2 and all('recipe.json is damaged' in error for error in errors)
    assert not (tmp_path / 'out').exists()


def test_a_chain_that_could_not_end_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, words in ((['--keep', 'x'], 'keep'), (['--mix-mode', 'x'], 'mix_mode'),
                        (['--pretraining', 'method=mae_lite'], 'not a SETTING=VALUE'),
                        (['--pretraining', 'epochs=many'], 'expected a whole number')):
        assert chain(tmp_path / 'run', *more) == 2
        error = capsys.readouterr().err
        assert words in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()
    assert run('train', 'mae_lite_vit_tiny.c100_mae', '--data', 'digits', '--output', str(tmp_path / 'run')) == 2
    assert 'pre-trained on other images' in capsys.readouterr().err and not (tmp_path / 'run').exists()
    assert run('train', 'cct_2_3x2.digits', '--pretraining', 'epochs=1') == 2
    assert 'has none' in capsys.readouterr().err


# -- distillation ------------------------------------------------------------------------------------------------------
def test_distillation_from_a_run(data: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is in no checkpoint, and a resumed run ends with the same bits."""
    own_teacher = tmp_path / 'teacher.pth'
    torch.save(timm.create_model('vit_lite_2_4', num_classes=0, img_size=16).state_dict(), own_teacher)
    teach = ['--teacher', 'vit_lite_2_4', '--teacher-weights', str(own_teacher),
             '--method-args', "{'decoder_block': 1, 'decoder_dim': 24}"]
    assert pretrained(data, tmp_path / 'whole', *teach, method='d_mae') == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 8, 12)
        assert pretrained(data, tmp_path / 'run', *teach, method='d_mae') == 128 + signal.SIGTERM
    state = read_checkpoint(run_dir.checkpoints(tmp_path / 'run')[-1])
    assert state and not any('teacher' in name for name in state['network'])
    assert pretrained(data, tmp_path / 'run', *teach, '--resume', method='d_mae') == 0
    assert_same_bits(tmp_path / 'whole', tmp_path / 'run')


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('argv, words', [
    (['mae_smal', '--model', 'vit_lite_2_4'], 'Did you mean mae_small'), (['mae_small'], 'The model is missing'),
    (['mae_vit_c10.c10_mae', '--model', 'mae_vit_c10'], 'leave out the model'),
    (['mae_vit_c10.c10_100e'], 'is a supervised training'), (['mae_small', '--model', 'vit_lit'], 'no model'),
    (['mae_small', '--model', 'cct_2_3x2'], 'Or use moco_v3'),
    (['mae_small', '--model', 'vit_lite_2_4', '--method-args', "{'alpha': 1.}"], "no argument 'alpha'"),
    (['mae_small', '--model', 'vit_lite_2_4', '--method-args', "{'mask_ratio': 1.}"], 'leaves none'),
    (['mae_small', '--model', 'vit_lite_2_4', '--teacher', 'vit_lite_2_4'], 'does not use a teacher'),
    (['d_mae', '--model', 'vit_lite_2_4'], 'give teacher and'),
    (['d_mae', '--model', 'vit_lite_2_4', '--teacher', 'vit_lit'], "no teacher 'vit_lit'"),
    (['d_mae', '--model', 'vit_lite_2_4', '--teacher', 'vit_lite_4_4', '--teacher-weights', 'no.pth'], 'no.pth'),
    (['d_mae', '--model', 'vit_lite_2_4', '--teacher', 'resnet18'], 'resnet18 cannot be a teacher'),
    (['d_mae', '--model', 'vit_lite_2_4', '--teacher', 'sl_swin'], 'sl_swin cannot be a teacher'),
    *((['self_distill', '--model', 'vit_lite_2_4', '--method-args', f'{{{args}}}'], words) for args, words in (
        ("'local_views': -1", 'local_views is -1'), ("'local_scale': (0.5,)", 'local_scale is (0.5,)'),
        ("'local_scale': (0.5, 0.2)", 'the smaller number'), ("'teacher_temperature': 0.04", 'expected 2 numbers'),
        ("'num_prototypes': 0", 'num_prototypes is 0'), ("'num_prototypes': 2.5", 'expected a whole number'),
        ("'local_views': 0.99", 'expected a whole number'))),
    *((['mae_small', '--model', 'vit_lite_2_4', '--method-args', f'{{{args}}}'], words) for args, words in (
        ("'mask_ratio': 'a'", "mask_ratio is 'a'"), ("'decoder_depth': -1", 'decoder_depth is -1'),
        ("'decoder_heads': 0", 'decoder_heads is 0'))),
    *(([method, '--model', model], f'{kind} is not a plain encoder') for method in ('mae_small', 'mae_lite')
      for model, kind in (('sl_swin', 'LocalSwin'), ('plain_swin', 'LocalSwin'), ('ssl_swin', 'SslSwin'))),
    (['mae_small', '--model', 'vit_lite_2_4', '--model-args', "{'foo': 1}"], "argument 'foo'"),
    (['mae_small', '--model', 'vit_lite_2_4', '--crop-interpolation', 'foo'], "interpolation is 'foo'"),
    (['mae_small', '--model', 'vit_lite_2_4', '--crop-padding', '2'], 'expected one of them'),
    (['mae_small', '--model', 'vit_lite_2_4', '--flip', '2'], 'flip is 2.0'),
    (['mae_small', '--model', 'vit_lite_2_4', '--eval-every', '-1'], 'eval_every is -1'),
    (['mae_small', '--model', 'vit_lite_2_4', '--mixup', '1'], "no option '--mixup'"),
    (['mae_small', '--model', 'vit_lite_2_4', '--weight-decay-end', 'x'], 'expected a value like 0.4'),
    (['mae_small', '--model', 'vit_lite_2_4', '--weight-decay', '0', '--weight-decay-end', '1'], 'weight_decay is 0'),
])
def test_bad_input_is_one_line_and_leaves_nothing(
        data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    assert run('pretrain', *argv, '--data', data, '--output', str(tmp_path / 'run'), *PLAIN) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1
    assert not (tmp_path / 'run').exists()


def test_a_pretraining_is_no_supervised_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run('train', 'mae_vit_c10.c10_mae', '--data', 'digits') == 2
    assert 'tinyvit-zoo pretrain mae_vit_c10.c10_mae' in capsys.readouterr().err


# -- the recipes -------------------------------------------------------------------------------------------------------
def test_fine_tunings_begin_with_pretrainings_that_there_are() -> None:
    """Of the same network, but for the relative positions, which come in at fine-tuning."""
    for recipe in (*mae_small.RECIPES, *mae_lite.RECIPES):
        if 'moco' not in recipe.from_weights and recipe.from_weights:
            first = PRETRAININGS[recipe.from_weights]
            assert first.model == recipe.model.removesuffix('_rpe'), recipe.name


@pytest.mark.parametrize('recipe', [*PRETRAININGS.values(), *(
    replace(recipe, name=f'vit_lite_2_4.{method}') for method, recipe in own.PRETRAINING_PRESETS.items())],
    ids=lambda recipe: recipe.name)
def test_every_recipe_builds_its_method(recipe: Pretraining, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyvit_zoo.publish.cards import recipe_text

    if recipe.method == 'd_mae':  # without fetching the teacher's weights
        teacher = 'vit_tiny_patch16_224' if recipe.teacher else 'vit_lite_4_4'  # smaller, with as many patches
        recipe = replace(recipe, teacher=teacher)
        monkeypatch.setattr(self_supervised, 'make_teacher', lambda recipe: timm.create_model(
            teacher, num_classes=0, img_size=recipe.img_size, global_pool='token'))
    check_recipe(recipe)
    if recipe.name in PRETRAININGS:
        assert recipe.name not in RECIPES
        if recipe.name == next(other.name for other in PRETRAININGS.values() if other.method == recipe.method):
            assert f'method: {recipe.method}' in recipe_text(recipe.name)   # counts what it costs
    else:
        assert SelfSupervised.make_network(recipe, {'input_size': (3,)}, torch.device('cpu')).kept().num_classes == 0


def test_the_schedules_of_a_pretraining() -> None:
    """The cosine begins behind the warm-up; the weight decay goes its own way, where there is any."""
    recipe = Pretraining(name='ssl_vit.x', about='', method='mae_small', epochs=30, warmup_epochs=10, lr=1., min_lr=0.2,
                         weight_decay=0.1, weight_decay_end=0.5)
    assert [learning_rate(recipe, epoch) for epoch in (0, 5, 10, 20, 30)] == pytest.approx([0., 0.5, 1., 0.6, 0.2])
    assert [weight_decay(recipe, epoch) for epoch in (0, 15, 30, 31)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    optimizer = make_optimizer(recipe, timm.create_model('ssl_vit', depth=1))
    set_learning_rate(optimizer, 0.3, 0.25)
    assert sorted(group['weight_decay'] for group in optimizer.param_groups) == [0., 0.25]
    assert all(group['lr'] == 0.3 for group in optimizer.param_groups)
    constant = replace(recipe, weight_decay_end=None)
    assert weight_decay(constant, 17) == 0.1


# -- looking on --------------------------------------------------------------------------------------------------------
def test_a_collapse_is_named(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                             monkeypatch: pytest.MonkeyPatch) -> None:
    """At every look from which on all images have one feature, and not before."""
    whole = loop.Loop.train_step

    def collapse(self: loop.Loop, *args: Any) -> None:
        whole(self, *args)
        if self.step >= 7:  # in the second epoch of three
            self.task.network.encoder.norm.weight.data.zero_()

    monkeypatch.setattr(loop.Loop, 'train_step', collapse)
    assert pretrained(data, tmp_path / 'run', '--eval-every', '1', '--epochs', '3') == 0
    out = capsys.readouterr().out
    assert out.count('has collapsed') == 2 and out.index('has collapsed') > out.index('epoch 1:')


def test_images_without_a_test_part_are_judged_among_themselves(tmp_path: Path) -> None:
    import numpy as np
    arrays = dict(np.load(write_npz(tmp_path / 'all.npz').removeprefix('npz:')))
    np.savez(tmp_path / 'train.npz', **{name: arrays[name] for name in ('train_images', 'train_labels')})
    assert pretrained(f'npz:{tmp_path / "train.npz"}', tmp_path / 'run', '--epochs', '1', '--warmup-epochs', '0') == 0
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['figures']['knn']['last']['knn_top1'] >= 0


# -- many processes ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_two_processes_give_the_encoder_of_one(data: str, server: Server, tmp_path: Path) -> None:
    """Each image has the mask that it would have had; with nothing else that is random, and SGD."""
    more = ['--opt', 'sgd', '--flip', '0', '--crop-scale', 'None', '--epochs', '2', '--warmup-epochs', '0']
    server.run_two(['pretrain', 'mae_small', '--data', data, '--output', str(tmp_path / 'two'), *MODEL, *SETTINGS,
                    *more], tmp_path / 'two')
    assert pretrained(data, tmp_path / 'one', *more) == 0
    one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)
    both = [json.loads((tmp_path / name / 'result.json').read_text())['figures']['knn'] for name in ('one', 'two')]
    assert both[0]['last']['spread'] == pytest.approx(both[1]['last']['spread'], rel=1e-3)


@pytest.mark.slow
def test_two_processes_train_from_an_encoder(finished: Path, data: str, server: Server, tmp_path: Path) -> None:
    server.run_two(['train', '--from', str(finished), '--data', data, '--output', str(tmp_path / 'run'), *PLAIN,
                    '--epochs', '1', '--warmup-epochs', '0', '--batch-size', '32'], tmp_path / 'run')
    assert (tmp_path / 'run' / 'result.json').exists()


def test_without_matplotlib_there_are_no_pictures(
        data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert pretrained(data, tmp_path / 'run', '--epochs', '1', '--warmup-epochs', '0') == 0
    assert capsys.readouterr().out.count('Pictures need matplotlib') == 1
    assert not (tmp_path / 'run' / 'reconstructions').exists()


def test_the_teacher_must_fit(tmp_path: Path) -> None:
    torch.save(timm.create_model('vit_lite_2_4', num_classes=0).state_dict(), tmp_path / 'w.pth')
    recipe = Pretraining(name='vit_lite_2_4.x', about='', method='d_mae', teacher='vit_lite_4_4', img_size=32,
                         teacher_weights=str(tmp_path / 'w.pth'))
    with pytest.raises(ZooError, match='no weights of vit_lite_4_4'):
        self_supervised.make_teacher(recipe)


# -- the picture -------------------------------------------------------------------------------------------------------
def test_runs_are_drawn_by_what_they_began_with(
        data: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip('matplotlib')
    matplotlib.use('agg')
    sys.path.insert(0, str(HERE.parent / 'tools'))
    import plot_pretraining

    tuned = tmp_path / 'tuned'
    assert run('train', '--from', str(finished), '--data', data, '--output', str(tuned), *PLAIN, '--epochs', '1',
               '--batch-size', '16', '--warmup-epochs', '0') == 0
    before, after = plot_pretraining.read([finished, tuned])
    (epochs, values), = (zip(*one, strict=True) for one in before['mae_small'])
    assert epochs == (0, 1, 2) and all(0 < value <= 100 for value in values)
    assert list(after) == ['mae_small'] and after['mae_small'][0][0][0] == 1
    monkeypatch.setattr(sys, 'argv', ['plot', str(finished), str(tuned), '--out', str(tmp_path / 'curves.png')])
    assert plot_pretraining.main() == 0
    assert (tmp_path / 'curves.png').stat().st_size > 10_000
    with pytest.raises(ZooError, match=r'recipe\.json'):
        plot_pretraining.read([tmp_path])
