"""Training, evaluating and using models from Python."""
from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import tqdm.auto
from PIL import Image

import tinyvit_zoo as zoo
from tinyvit_zoo import ZooError
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.measure import prediction
from tinyvit_zoo.measure.figures import Figures
from tinyvit_zoo.publish.export import load_exported
from tinyvit_zoo.training import own
from tinyvit_zoo.training.loop import Loop
from tinyvit_zoo.weights import save_weights
from tinyvit_zoo.weights.readout import PLAIN, Readout, write_readout

SMALL: dict[str, Any] = dict(
    epochs=2, batch_size=16, warmup_epochs=1, img_size=16, auto_augment='', precision='fp32', device='cpu',
    model_args={'depth': 1}, from_weights='', layer_decay=1.)
NESTED: list[Any] = []
for _ in range(3000):
    NESTED = [NESTED]


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey squares of three classes by their brightness."""
    draw = np.random.RandomState(seed)
    labels = np.arange(count) % 3
    return (draw.randint(0, 60, (count, 16, 16)) + 80 * labels[:, None, None]).astype(np.uint8), labels


DATA = {'train': pictures(48, 0), 'test': pictures(12, 1), 'class_names': ['dark', 'grey', 'light']}


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> zoo.Classifier:
    return zoo.train('cct_2_3x2', DATA, output=tmp_path_factory.mktemp('api') / 'run', **SMALL)


def test_the_package_tells_its_story() -> None:
    assert dir(zoo) == sorted(zoo.__all__) and all(hasattr(zoo, name) for name in zoo.__all__)
    assert all(zoo.__doc__ and name in zoo.__doc__ for name in ('train', 'pretrain', 'load', 'evaluate', 'predict'))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        zoo.trian  # noqa: B018


def test_a_run_or_a_folder_for_the_hub_is_fine_tuned(run: zoo.Classifier, tmp_path: Path) -> None:
    """At its size, with its shape; NAME.untrained starts from scratch."""
    model = timm.create_model('cct_2_3x2', num_classes=3, img_size=16, depth=1)
    timm.models.save_for_hf(model, str(tmp_path / 'hub'), model_args={'depth': 1, 'img_size': 16})
    short: dict[str, Any] = dict(epochs=1, lr=1e-9, warmup_epochs=0, auto_augment='', precision='fp32', device='cpu')
    again = zoo.train(run.folder, DATA, output=tmp_path / 'again', **short)
    assert 'input [3, 16, 16]' in repr(again)
    assert torch.allclose(again.model.head.weight, run.model.head.weight, atol=1e-4)
    hub = f'local-dir:{tmp_path / "hub"}'
    tuned = zoo.train(hub, DATA, output=tmp_path / 'tuned', **short)
    assert torch.allclose(tuned.model.head.weight, model.head.weight, atol=1e-4)
    begun = zoo.train('cct_2_3x2.untrained', DATA, start=run, output=tmp_path / 'begun', **{**short, 'img_size': 16,
                      'model_args': {'depth': 1}, 'epochs': np.int64(1)})
    assert torch.allclose(begun.model.head.weight, run.model.head.weight, atol=1e-4)
    with pytest.raises(ZooError, match=r'The weights are \[\], expected a name, a path, or what train'):
        zoo.train('cct_2_3x2', DATA, start=[], output=tmp_path / 'other', **short)
    with pytest.raises(ZooError, match='are weights of cct_2_3x2, not of cct_4_3x2'):
        zoo.train('cct_4_3x2', DATA, start=hub, output=tmp_path / 'other', **short)
    scratch = zoo.train('cct_2_3x2.untrained', DATA, output=tmp_path / 'scratch', **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(
        run.model.state_dict().values(), scratch.model.state_dict().values(), strict=True))


def test_a_run_is_that_of_the_command(run: zoo.Classifier, tmp_path: Path) -> None:
    """The same weights, to the bit, from an .npz of the same images."""
    arrays = {f'{name}_{what}': value for name in ('train', 'test')
              for what, value in zip(('images', 'labels'), DATA[name], strict=True)}
    np.savez(tmp_path / 'a.npz', **arrays)
    options = [f'--{key.replace("_", "-")}={value}' for key, value in SMALL.items()]
    assert main(['train', '--model', 'cct_2_3x2', '--data', f'npz:{tmp_path / "a.npz"}', '--output',
                 str(tmp_path / 'run'), *options]) == 0
    other = zoo.load(tmp_path / 'run', 'cpu')
    assert all(torch.equal(a, b) for a, b in zip(
        run.model.state_dict().values(), other.model.state_dict().values(), strict=True))
    assert run.result['figures'] == other.result['figures'] and 'train' in run.result['command']
    assert run.classes == ('dark', 'grey', 'light') and other.classes == ('0', '1', '2')


def test_evaluate(run: zoo.Classifier, tmp_path: Path) -> None:
    figures = run.evaluate(DATA)
    assert figures.scalars() == pytest.approx(run.result['figures']['test']) and len(figures.classes) == 3
    assert run.evaluate(DATA['test'], per_class=False).to_dict() == {
        **figures.to_dict(), 'classes': [], 'confusion': []}
    assert run.evaluate(DATA, 'train').images == 48 and run.evaluate(DATA, bootstrap=20).intervals['f1']
    assert run.evaluate(Pairs(run.classes)).images == 12
    images, labels = DATA['test']
    assert run.evaluate(Pairs(('light', 'grey', 'dark'))) == run.evaluate((images, 2 - labels))     # by name
    texts = DATA['test'][0], [run.classes[label] for label in DATA['test'][1]]
    assert run.evaluate(texts) == run.evaluate(DATA['test'])
    with pytest.raises(ZooError, match="test labels have the class 'blue': expected 'dark', 'grey'"):
        run.evaluate((texts[0], ['blue', *texts[1][1:]]))
    paths = run.show(tmp_path / 'pictures')
    assert [path.name for path in paths] == ['curves.png', 'reliability.png', 'confusion.png', 'mistakes.png']
    assert all(path.read_bytes()[:4] == b'\x89PNG' for path in paths)
    with pytest.raises(ZooError, match='call evaluate'):
        zoo.load('cct_2_3x2.digits').show()
    with pytest.raises(ZooError, match='3 classes, digits has 10'):
        run.evaluate('digits')
    with pytest.raises(ZooError, match='labels up to 7, expected 0 to 2'):
        run.evaluate((DATA['test'][0], np.array([7] + [0] * 11)))
    with pytest.raises(ZooError, match='labels up to 1, expected 0 to 2'):
        run.evaluate((DATA['test'][0], np.eye(12, 2)))
    with pytest.raises(ZooError, match='gives an image one label, an array has several labels'):
        run.evaluate((DATA['test'][0], [[]] * 12))


def test_images_that_are_new_to_the_weights(
        run: zoo.Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of a folder, or a split alone, of some of the classes."""
    images, labels = DATA['test']
    for i in range(12):
        (tmp_path / run.classes[labels[i]]).mkdir(exist_ok=True)
        Image.fromarray(images[i]).save(tmp_path / run.classes[labels[i]] / f'{i}.png')
    whole = run.evaluate(f'folder:{tmp_path}', 'all')
    assert isinstance(whole, Figures) and whole.images == 12 and whole.top1 == run.evaluate(DATA).top1
    assert run.evaluate(f'folder:{tmp_path}').images == 2
    lone = images[labels == 1], np.zeros(4, int)
    assert run.evaluate({'test': lone, 'class_names': ['grey']}) == run.evaluate((lone[0], lone[1] + 1))
    with pytest.raises(ZooError, match=r'has splits of its own \(train, test\): evaluate on one of them'):
        run.evaluate(DATA, 'all')
    with pytest.raises(ZooError, match='has no val images, but test: evaluate on the split test'):
        run.evaluate({'test': lone, 'class_names': ['grey']}, 'val')
    command = ['eval', str(run.folder), '--data', f'folder:{tmp_path}', '--split', 'all']
    assert main([*command, '--json']) == 0 and json.loads(capsys.readouterr().out)[0]['split'] == 'all'
    assert main(command) == 0 and ', all images' in capsys.readouterr().out
    assert main([*command, '--knn']) == 2


def test_numbers_as_names_are_compared_by_name(tmp_path: Path) -> None:
    """Whatever their order in the weights; folders and tables have them in that of the numbers."""
    images, labels = pictures(24, 0)
    lines = ['path,label']
    for i, label in enumerate(labels):
        path = tmp_path / 'set' / ('1', '10', '2')[label] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(path)
        lines.append(f'{path},{path.parent.name}')
    (tmp_path / 'a.csv').write_text('\n'.join(lines))
    data = {'train': (images, labels), 'class_names': ['1', '10', '2']}
    run = zoo.train('cct_2_3x2', data, output=tmp_path / 'run', **SMALL)
    assert run.classes == ('1', '10', '2')
    found = [run.evaluate(tmp_path / name, 'all') for name in ('a.csv', 'set')]
    assert [f.confusion for f in found] == [found[0].confusion] * 2 and found[0].images == 24  # type: ignore[union-attr]
    (tmp_path / 'set' / '10').rename(tmp_path / 'set' / '7')
    with pytest.raises(ZooError, match=r'has the classes 7, which .* does not know'):
        run.evaluate(tmp_path / 'set')


def test_classes_are_compared_by_name(run: zoo.Classifier, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Images of some of the classes, in another order, are numbered as the weights number them."""
    images, labels = DATA['test']
    chosen = np.isin(labels, (0, 2))
    expected = run.evaluate((images[chosen], labels[chosen]))
    half = images[chosen], (labels[chosen] == 0).astype(int)
    assert run.evaluate({'train': half, 'class_names': ['light', 'dark']}) == expected
    assert expected.classes[1].auroc is None and expected.classes[0].images == 4
    with pytest.raises(ZooError, match=r'has the classes blue, which .* does not know \(it knows dark, gr'):
        run.evaluate({'train': half, 'class_names': ['blue', 'dark']})
    for i, name in enumerate(('dark', 'grey', 'light')):
        for split in ('train', *['test'] * (i > 0)):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(images[i]).save(tmp_path / split / name / 'a.png')
    assert main(['eval', str(run.folder), '--data', f'folder:{tmp_path}', '--per-class']) == 0
    assert 'no images of dark: balanced accuracy, AUROC and AP are means' in capsys.readouterr().out


class Pairs(torch.utils.data.Dataset):
    """Pillow images and labels, in the order of DATA['test']."""

    def __init__(self, classes: tuple[str, ...] = ()) -> None:
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(DATA['test'][0][i]), int(DATA['test'][1][i])


def test_predict(run: zoo.Classifier, tmp_path: Path) -> None:
    """The same image in every form gives the same, also in batches of another size."""
    grey = DATA['test'][0][4]
    Image.fromarray(grey).save(tmp_path / 'a.png')
    colour = np.repeat(grey[..., None], 3, 2)
    forms = [tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(grey), grey, colour,
             torch.from_numpy(colour).permute(2, 0, 1), torch.from_numpy(grey)[None].float() / 255]
    one, = run.predict(forms[0])
    for found in (*run.predict(forms, batch_size=2), *(run.predict(form)[0] for form in forms)):
        assert found.indices == one.indices and found.probabilities == pytest.approx(one.probabilities, abs=1e-6)
    assert one.label == run.classes[one.indices[0]] and one.probability == max(one.probabilities)
    assert sum(one.probabilities) == pytest.approx(1, abs=1e-6) and len(run.predict(grey, topk=1)[0].labels) == 1
    with pytest.raises(ZooError, match=r'color image or three grey ones: give \[1, 3, 16, 16\] or \[3, 1, 16, 16\]'):
        run.predict(DATA['test'][0][:3])
    color = zoo.load('vit_tiny_patch16_224.untrained', 'cpu')      # its means are alike, but no measurement
    assert len(color.predict(torch.rand(3, 30, 30))) == 1
    assert len(run.predict(DATA['test'][0][:3, None])) == 3 and len(run.predict(DATA['test'][0][None, :3])) == 1
    several = run.predict(DATA['test'][0])
    assert len(several) == 12 and several[4].probabilities == pytest.approx(one.probabilities, abs=1e-6)
    assert len(run.predict(torch.rand(5, 3, 20, 30))) == 5 and run.predict([]) == []
    (tmp_path / 'b.png').write_bytes(b'no image')
    for bad, message in (
            (tmp_path / 'b.png', 'b.png cannot be read'), (np.zeros((4, 4)) + 2, 'Image 0 .*from 2 to 2, expected'),
            ([grey, 'missing.png'], 'missing.png cannot be read'), ([None], 'Image|The image')):
        with pytest.raises(ZooError, match=message):
            run.predict(bad)


def test_bars(run: zoo.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the package's own kind, which a notebook shows too; nothing where there is no terminal."""
    for terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, 'isatty', lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, 'stderr', stream)
        run.evaluate(DATA)
        run.predict(DATA['test'][0], batch_size=4)
        text = stream.getvalue()
        assert 'evaluating:' in text and '/12 ' in text if terminal else not text
    assert issubclass(prediction.Progress, tqdm.auto.tqdm)


def test_the_temperature_is_kept_with_the_weights(run: zoo.Classifier, tmp_path: Path) -> None:
    """A training with validation images fits it; predictions are scaled by it, logits are not."""
    folder, first = tmp_path / 'run', DATA['test'][0][0]
    mine = zoo.train('cct_2_3x2', DATA, output=folder, val_fraction=0.25, **SMALL)
    figures = mine.result['figures']
    temperature = figures['val']['temperature']
    assert mine.evaluate(DATA).calibrated_error == pytest.approx(figures['test']['calibrated_error'], abs=1e-6)
    before = mine.predict(first)[0].probabilities
    for changed in (Readout(0.5), PLAIN):
        write_readout(folder / 'weights.safetensors', changed)
        assert zoo.load(folder).evaluate(DATA).loss == pytest.approx(figures['test']['loss'], rel=1e-5)
    scaled = np.array(zoo.load(folder).predict(first)[0].probabilities) ** (1 / temperature)
    assert before == pytest.approx(scaled / scaled.sum(), abs=1e-5)
    again = zoo.load(folder)
    assert again.calibrate(DATA) == pytest.approx(temperature, rel=1e-5)        # the images that were held out
    assert again.predict(first)[0].probabilities == pytest.approx(before, abs=1e-5)
    other = again.calibrate(DATA['test'])
    assert other != temperature and f'shows softmax(logits / {other:.4g});' in (folder / 'card.md').read_text()
    for classifier, message in ((run, 'no validation images'), (zoo.load('cct_2_3x2.digits'), 'no file to store')):
        with pytest.raises(ZooError, match=message):
            classifier.calibrate(DATA)


def test_export(run: zoo.Classifier, tmp_path: Path) -> None:
    report = run.export(tmp_path / 'a.pt2')
    assert report['label_names'] == list(run.classes) and report['largest_difference'] < 1e-4
    assert report['output'] == 'logits' and report['probabilities'] == 'softmax(logits)'
    assert report['temperature'] is None and report['multi_label'] is False
    assert json.loads((tmp_path / 'a.pt2.json').read_text())['sha256'] == report['sha256']
    for data in (DATA, DATA['test'], Pairs(run.classes)):       # as `evaluate` takes them
        measured = run.export(tmp_path / 'a.pt2', data=data)['measured']
        assert measured['images'] == 12 and measured['top1'] == run.evaluate(data).top1
    with pytest.raises(ZooError, match=r'\.onnx, \.pt2'):
        run.export(tmp_path / 'a.tf')
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    assert run.export(tmp_path / 'a8.onnx', int8=True, data=DATA)['int8'] == 'weights and activations'


def test_a_model_that_was_changed_is_what_is_used(run: zoo.Classifier, tmp_path: Path) -> None:
    changed = zoo.load(run.folder, 'cpu')
    with torch.inference_mode():
        changed.model.head.weight.zero_()
    assert changed.export(tmp_path / 'a.pt2', data=DATA)['measured']['top1'] == changed.evaluate(DATA).top1
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(load_exported(tmp_path / 'a.pt2')(images), changed.model(images))
    changed.model.set_input_size((32, 32))
    assert len(changed.predict(DATA['test'][0])) == changed.evaluate(DATA).images == 12
    assert changed.export(tmp_path / 'a.pt2')['input_size'] == [3, 32, 32] and '32, 32' in repr(changed)
    uses: tuple[Any, ...] = (lambda: changed.predict(DATA['test'][0]), lambda: changed.evaluate(DATA),
                             lambda: changed.export(tmp_path / 'b.pt2'))
    changed.model = torch.compile(changed.model, backend='eager')   # type: ignore[assignment]
    for use in uses:
        use()
    changed.model = changed.model._orig_mod
    with pytest.raises(ZooError, match='was changed after it was loaded'):
        zoo.train(changed, DATA, output=tmp_path / 'run')
    plain = changed.model
    for other in (None, torch.nn.Identity()):
        changed.model = other   # type: ignore[assignment]
        for use in (*uses, lambda: zoo.train(changed, DATA, output=tmp_path / 'run')):
            with pytest.raises(ZooError, match='expected a model of timm'):
                use()
    assert not (tmp_path / 'run').exists()
    encoder = zoo.load('vit_lite_2_4.untrained', 'cpu')
    encoder.model.reset_classifier(0)   # with the label_names of its architecture
    encoder._loaded = replace(encoder._loaded, shape=(encoder._loaded.shape[0], 0))
    assert encoder.export(tmp_path / 'e.pt2')['largest_difference'] < 1e-4
    changed.model = timm.create_model('resnet18', num_classes=3)
    for use in uses[:2]:
        use()
    changed.model = plain
    plain.pretrained_cfg['input_size'] = (3, 64, 64)      # not that of the model
    for use in uses[:2]:
        use()
    plain, changed.model = changed.model, torch.nn.DataParallel(changed.model)  # type: ignore[assignment]
    for use in uses:
        with pytest.raises(ZooError, match='is now a DataParallel'):
            use()
    changed.model = plain
    for change, message in ((lambda: plain.reset_classifier(3, ''), r'The outputs .* are \[.*, 3\], expected'),
                            (changed.model.half, 'is now torch.float16, expected torch.float32'),
                            (lambda: changed.model.float().reset_classifier(7), 'now has 7 classes, expected 3')):
        change()
        for use in uses:
            with pytest.raises(ZooError, match=message):
                use()


def test_a_relative_run_serves_from_another_directory(
        run: zoo.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder.parent)
    opened = zoo.load(run.folder.name)
    monkeypatch.chdir(tmp_path)
    assert opened.folder == run.folder and opened.show() == [run.folder / 'curves.png']
    assert opened.export('a.pt2')['label_names'] == list(run.classes)


def test_pretrain_then_train(tmp_path: Path) -> None:
    small = {**SMALL, 'epochs': 1, 'warmup_epochs': 0}
    for key in ('from_weights', 'layer_decay', 'auto_augment'):
        small.pop(key)
    encoder = zoo.pretrain('mae_small', DATA['train'], model='ssl_vit', output=tmp_path / 'a', **small)
    assert encoder.result['weights'] == 'ssl_vit.mae_small'
    run = zoo.train('', Pairs(), start=encoder, output=tmp_path / 'b', epochs=1, batch_size=6, device='cpu')
    assert str(tmp_path / 'a') in json.loads((tmp_path / 'b' / 'recipe.json').read_text())['recipe']['from_weights']
    assert run.predict(DATA['test'][0][0]) and not run.result['figures']
    assert f"train('', data=..., start='{encoder.folder}', epochs=1" in (tmp_path / 'b' / 'card.md').read_text()
    with pytest.raises(ZooError, match='model is missing'):
        zoo.pretrain('mae_small', DATA)
    with pytest.raises(ZooError, match='is an encoder without classes'):
        zoo.load(encoder.folder).evaluate(DATA['test'])
    with pytest.raises(ZooError, match='is not a run directory'):
        zoo.train('ssl_vit', DATA, start=tmp_path, output=tmp_path / 'c')


@pytest.mark.parametrize('recipe, data, keywords, call', [
    (own.finetuning_recipe('cct_2_3x2'), Path('photos'), {'epochs': 2, 'resume': True},
     "train('cct_2_3x2', data='folder:photos', start='cct_2_3x2.c10', epochs=2)"),
    (own.finetuning_recipe('cct_2_3x2.c10'), Path('a.npz'), {}, "train('cct_2_3x2.c10', data='npz:a.npz')"),
    (own.finetuning_recipe('cct_2_3x2', 'runs/a'), 'digits', {}, "train('cct_2_3x2', data='digits', start='runs/a')"),
    (own.finetuning_recipe('cct_2_3x2'), 'digits', {'from_weights': ''},
     "train('cct_2_3x2', data='digits', from_weights='')"),
    (zoo.find_recipe('cct_2_3x2.digits'), 'digits', {},
     "train(tinyvit_zoo.find_recipe('cct_2_3x2.digits'), data='digits')"),
    (own.pretraining_recipe('mae_small', 'ssl_vit'), 'digits', {},
     "pretrain('mae_small', model='ssl_vit', data='digits')")])
def test_the_call_in_the_card(recipe: Any, data: Any, keywords: dict[str, Any], call: str) -> None:
    """It can be made again: with what it starts from, and the data as `train` takes them."""
    name = call.partition("'")[2].partition("'")[0]
    assert own.call_text(name, recipe, data, keywords) == f'tinyvit_zoo.{call}'


def test_a_recipe_by_its_name(tmp_path: Path) -> None:
    recipe = zoo.find_recipe('cct_2_3x2.digits')
    run = zoo.train(recipe, output=tmp_path / 'run', epochs=1, fraction=0.1, model_args={'depth': 1}, device='cpu')
    assert run.result['weights'] == 'cct_2_3x2.digits' and run.result['figures']['test']['images'] == 360


@pytest.mark.parametrize('keywords, message', [
    ({'epochz': 1}, "no setting 'epochz'. Did you mean epochs"), ({'epochs': '3'}, "epochs is '3': expected a"),
    ({'minutes': 1, 'epochs': 2}, 'give one of them'), ({'lr': -1.}, 'lr is -1.0'),
    ({'minutes': -1}, 'minutes is'), ({'precision': 'x'}, 'precision'), ({'crop_scale': 5}, 'crop_scale is 5'),
    ({'model_args': 3}, 'model_args is 3'), ({'lr': 10 ** 5000}, 'lr is a int that cannot be printed, expected'),
    ({'track': 'x' * 20_000}, 'track is .* expected a shorter'), ({'fraction': 10 ** 400}, 'fraction is 1000'),
    ({'model_args': {'depth': NESTED}}, 'model_args is a dict that cannot be printed'),
    ({'model_args': defaultdict(int, foo=1)}, "argument 'foo'")])
def test_bad_keywords_leave_nothing(keywords: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=message):
        zoo.train('cct_2_3x2', DATA, output=tmp_path / 'run', device='cpu', **keywords)
    assert not (tmp_path / 'run').exists()


def test_advice_names_what_python_has(run: zoo.Classifier, tmp_path: Path) -> None:
    for call, message in (
            (lambda: zoo.train('cct_2_3x2', DATA, output=run.folder, **SMALL), 'resume=True\\), or choose another'),
            (lambda: zoo.load(run.folder, 'none'), 'Use the device cpu'),
            (lambda: run.calibrate(DATA), 'a val_fraction of 0.1'),
            (lambda: run.export(tmp_path / 'a.pt2', int8=True), '^int8 is for'),
            (lambda: zoo.train('cct_2_3x2', DATA, output=tmp_path / 'a', pflop=1e-9, device='cpu'), '^pflop 1e-09 is')):
        with pytest.raises(ZooError, match=message) as error:
            call()
        assert '--' not in str(error.value).replace('(--resume, resume=True)', '')


def test_outputs_that_are_no_numbers_are_no_prediction(run: zoo.Classifier) -> None:
    assert run.folder
    damaged = zoo.load(run.folder, 'cpu')
    with torch.no_grad():
        next(damaged.model.parameters()).fill_(torch.nan)
    with pytest.raises(ZooError, match='not finite'):
        damaged.predict(DATA['test'][0][0])


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
@pytest.mark.parametrize('call, message', [
    (lambda run: run.predict([], batch_size='x'), "batch_size is 'x', expected int"),
    (lambda run: run.predict(np.array('x')), "images is array('x'"),
    (lambda run: run.predict([], topk=0), 'topk is 0, expected 1 to'),
    (lambda run: run.evaluate(DATA, split='tset'), "split is 'tset', expected train, val, test"),
    (lambda run: run.evaluate(DATA, bootstrap=-1), 'bootstrap is -1, expected 0 to'),
    (lambda run: run.evaluate(DATA, precision=[]), 'precision is [], expected str'),
    (lambda run: run.evaluate({**DATA, 'class_names': 3}), 'class_names is 3, expected'),
    (lambda run: run.predict(torch.rand(3, 8, 8).to_sparse()), 'Image 0 cannot be read as an image (The image: got Te'),
    (lambda run: run.predict(torch.nested.nested_tensor([torch.rand(3, 8, 8)] * 2)), 'Image 0 cannot be read as an'),
    (lambda run: run.predict(Image.new('RGB', (0, 5))), 'Image 0 cannot be read as an image (it has 0 x 5 pixels, exp'),
    (lambda run: run.show('\0'), r"'\x00' can be no name of a file"),
    (lambda _: zoo.find_recipe(None), 'The recipe is a NoneType'),
    (lambda _: zoo.find_recipe(np.zeros(2)), 'The recipe is a ndarray'),
    (lambda _: zoo.list_models(True), 'pattern is True, expected'),
    (lambda _: zoo.list_models(np.array([])), 'pattern is array([]'),
    (lambda run: run.export(3), 'path is 3, expected str | Path'), (lambda run: run.show(3), 'folder is 3, expected'),
    (lambda _: zoo.load(None), 'weights is None, expected str | Path'),
    (lambda _: zoo.load('x/' + 'x' * 5000), "x/xxxxxx"),
    (lambda _: zoo.train(1.5, DATA), 'model is 1.5, expected str | Path | Recipe'),
    (lambda _: zoo.train('cct_2_3x2.c10'), "There is no data: give data='folder:PATH'"),
    (lambda _: zoo.train('cct_2_3x2', DATA, epochs='3'), "epochs is '3': expected a whole number"),
    (lambda _: zoo.train('cct_2_3x2', DATA, lr=float('nan')), 'lr is nan: expected a finite number'),
    (lambda _: zoo.train('cct_2_3x2', DATA, betas=(1, 'x')), "betas is [1, 'x']: expected tuple[float, float]"),
    (lambda _: zoo.train('cct_2_3x2', DATA, workers='x'), "workers is 'x': expected int | None")])
def test_bad_arguments(call: Any, message: str, run: zoo.Classifier) -> None:
    with pytest.raises(ZooError) as e:
        call(run)
    assert str(e.value).startswith(message)


def test_a_second_training_of_the_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would change the random numbers of the first, and these its own."""
    told: list[str] = []

    def second() -> None:
        with pytest.raises(ZooError) as e:
            zoo.train('cct_2_3x2', DATA, output=tmp_path / 'second', **SMALL)
        told.append(str(e.value))

    def end_epoch(loop: Loop, own: Any = Loop.end_epoch) -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        own(loop)
    monkeypatch.setattr(Loop, 'end_epoch', end_epoch)
    for name in 'ab':       # the next may train
        zoo.train('cct_2_3x2', DATA, output=tmp_path / name, **SMALL)
    assert set(told) == {'Another training of this process is running: wait until it ends, or start another process.'}
    assert len(told) == 4 and not (tmp_path / 'second').exists()


def test_threads_load_and_export_one_at_a_time(run: zoo.Classifier, tmp_path: Path) -> None:
    def total(i: int) -> Any:
        at_once.wait()
        if i < 2:
            return run.export(tmp_path / f'{i}.pt2')['format']
        return zoo.load('vit_lite_2_4.untrained', device='cpu').model.head.weight.sum().item()
    at_once = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(total, range(6)))
    assert found[:2] == ['pt2', 'pt2'] and len(set(found[2:])) == 1


def test_no_state_is_left_behind(tmp_path: Path) -> None:
    """Random numbers, signal handlers, log levels, and whether gradients are recorded; also from another thread."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    level = logging.getLogger('huggingface_hub').level
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=lambda: zoo.train('cct_2_3x2', DATA, output=tmp_path / 'a', **SMALL))
    thread.start()
    thread.join()
    assert (tmp_path / 'a' / 'result.json').exists()
    zoo.train('cct_2_3x2', DATA, output=tmp_path / 'b', **SMALL).export(tmp_path / 'b.pt2')
    zoo.load('cct_2_3x2.untrained').export(tmp_path / 'c.pt2')
    assert logging.getLogger('huggingface_hub').level == level != logging.ERROR
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert np.random.get_state()[1].tolist() == before[1] and torch.is_grad_enabled()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_model_trained_by_the_caller_is_saved(run: zoo.Classifier, tmp_path: Path) -> None:
    """With its classes and preprocessing, where `state_dict` alone has the number of classes; neither is silent."""
    changed = zoo.load(run.folder, 'cpu')
    with torch.no_grad():
        changed.model.head.weight.mul_(-1)
    with pytest.raises(ZooError, match=r'the temperature belongs to its file: .* save it by its save\(FILE\)'):
        changed.calibrate({'val': DATA['test'], 'train': DATA['train']})
    with pytest.raises(ZooError, match='a training starts from its file'):
        zoo.train(changed, DATA, output=tmp_path / 'no', **SMALL)
    with pytest.raises(ZooError, match=r'own\.pth does not end in \.safetensors'):
        changed.save(tmp_path / 'own.pth')
    changed.save(tmp_path / 'own.safetensors')
    start = f'cct_2_3x2={tmp_path}/own.safetensors'
    options = {**SMALL, 'epochs': 1, 'warmup_epochs': 0, 'lr': 0., 'from_weights': start}
    again = zoo.train('cct_2_3x2', DATA, output=tmp_path / 'more', **options)
    assert again.predict(DATA['test'][0]) == changed.predict(DATA['test'][0]) != run.predict(DATA['test'][0])
    whole = zoo.train('cct_2_3x2.untrained', DATA, output=tmp_path / 'whole', **{**SMALL, 'model_args': {}})
    whole.save(tmp_path / 'whole.safetensors')
    opened = zoo.load(f'cct_2_3x2={tmp_path}/whole.safetensors', 'cpu')
    assert opened.classes == run.classes and opened.predict(DATA['test'][0]) == whole.predict(DATA['test'][0])


def test_a_file_that_states_no_classes(run: zoo.Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for classes, name in ((3, '0'), (10, 'airplane')):
        model = timm.create_model('cct_2_3x2', num_classes=classes)
        save_weights(model.state_dict(), tmp_path / 'bare.safetensors')
        caplog.clear()
        opened = zoo.load(f'cct_2_3x2={tmp_path}/bare.safetensors', 'cpu')
        assert len(opened.classes) == classes and opened.classes[0] == name
        assert torch.equal(opened.model.head.weight, model.head.weight)
        assert f'does not state its classes and preprocessing: taken for {classes} classes' in caplog.text


def test_whole_numbers_are_compared_with_names_that_are_numbers(tmp_path: Path) -> None:
    images, labels = DATA['train']
    grades = zoo.train('cct_2_3x2', (images, [str(label + 1) for label in labels]), output=tmp_path / 'run', **SMALL)
    some = labels < 2
    expected = grades.evaluate((images[some], [str(label + 1) for label in labels[some]]))
    assert grades.evaluate((images[some], labels[some] + 1)) == expected
    with pytest.raises(ZooError, match=r"have the class '0': expected '1', '2', '3'"):
        grades.evaluate((images, labels))


def test_torchs_defaults(run: zoo.Classifier, tmp_path: Path) -> None:
    """What the caller has set for its thread changes nothing; another default dtype is refused."""
    images = DATA['test'][0]
    expected, loss = run.predict(images), run.evaluate(DATA).loss
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        inside = zoo.train('cct_2_3x2', DATA, output=tmp_path / 'inside', **SMALL)
        assert inside.predict(images) == expected and inside.evaluate(DATA).loss == loss
    torch.set_default_device('meta')
    try:
        assert run.predict(images) == zoo.load(run.folder).predict(images) == expected
        trained = zoo.train('cct_2_3x2', DATA, output=tmp_path / 'run', **SMALL)
        assert torch.get_default_device().type == 'meta'
    finally:
        torch.set_default_device(None)
    assert trained.predict(images) == expected
    torch.set_default_dtype(torch.float64)
    try:
        for call in (lambda: run.predict(images), lambda: zoo.load(run.folder)):
            with pytest.raises(ZooError, match=r'default dtype is torch\.float64, expected float32'):
                call()
    finally:
        torch.set_default_dtype(torch.float32)


def test_ctrl_c_ends_with_a_checkpoint(run: zoo.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And `resume` goes on to the same bits."""
    step = Loop.train_step

    def interrupted(loop: Loop, *batch: torch.Tensor) -> None:
        step(loop, *batch)
        if loop.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(Loop, 'train_step', interrupted)
    with pytest.raises(KeyboardInterrupt, match='resume=True'):
        zoo.train('cct_2_3x2', DATA, output=tmp_path / 'run', **SMALL)
    monkeypatch.setattr(Loop, 'train_step', step)
    again = zoo.train('cct_2_3x2', DATA, output=tmp_path / 'run', resume=True, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(
        run.model.state_dict().values(), again.model.state_dict().values(), strict=True))


def test_images_of_a_dataset_are_told_apart(tmp_path: Path) -> None:
    """Test images that are trained on are named; `resume` refuses others."""
    train, test = ([*zip(*DATA[split], strict=True)] for split in ('train', 'test'))
    data = {**DATA, 'train': train, 'test': [*test, train[5]]}
    zoo.train('cct_2_3x2', data, output=tmp_path / 'run', **SMALL)
    assert '1 of 13 test images are training images too' in (tmp_path / 'run/train.log').read_text()
    zoo.train('cct_2_3x2', data, output=tmp_path / 'run', resume=True, **SMALL)
    for split, items in (('contents', [(255 - train[0][0], 0), *train[1:]]), ('test', [*test, train[8]])):
        changed = {'train' if split == 'contents' else split: items}
        with pytest.raises(ZooError, match=f'{split} [0-9a-f]+ -> '):
            zoo.train('cct_2_3x2', data | changed, output=tmp_path / 'run', resume=True, **SMALL)


def test_training_on_a_list_of_paths_is_that_on_their_pixels(tmp_path: Path) -> None:
    images, labels = DATA['train']
    for i, image in enumerate(images):
        path = tmp_path / 'photos' / DATA['class_names'][labels[i]] / f'{i:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    paths = sorted(tmp_path.rglob('*.png'))
    names, arrays = [path.parent.name for path in paths], np.stack([images[int(path.stem)] for path in paths])
    first, again = (zoo.train('cct_2_3x2', {**DATA, 'train': (given, names)}, output=tmp_path / name, **SMALL)
                    for given, name in ((paths, 'a'), (arrays, 'b')))
    assert first.result['figures'] == again.result['figures']
