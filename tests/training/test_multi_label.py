"""Images that may have several labels, from the layouts of data to predictions."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tinyvit_zoo as zoo
from tinyvit_zoo import ZooError
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.data.splits import draw
from tinyvit_zoo.measure.calibration import fit_temperature
from tinyvit_zoo.measure.figures import figures_of
from tinyvit_zoo.weights.readout import Readout

SMALL: dict[str, Any] = dict(
    epochs=3, batch_size=16, warmup_epochs=1, img_size=16, auto_augment='', precision='fp32', device='cpu',
    model_args={'depth': 1}, from_weights='', layer_decay=1., crop_scale=None)


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images whose left half, right half or both are bright: a label for each; some have none."""
    draws = np.random.RandomState(seed)
    labels = np.stack([np.arange(count) % 2, np.arange(count) // 2 % 2, np.arange(count) % 5 == 0], 1).astype(np.uint8)
    images = draws.randint(0, 60, (count, 16, 16))
    images[:, :, :8] += 150 * labels[:, :1, None]
    images[:, :, 8:] += 150 * labels[:, 1:2, None]
    return images.astype(np.uint8), labels


DATA = {'train': pictures(64, 0), 'test': pictures(20, 1), 'class_names': ['left', 'right', 'fifth']}


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> zoo.Classifier:
    folder = tmp_path_factory.mktemp('several') / 'run'
    return zoo.train('cct_2_3x2', DATA, output=folder, keep='best', balance='loss', **SMALL)


# -- layouts -----------------------------------------------------------------------------------------------------------
def test_tables_and_arrays_give_the_same(tmp_path: Path) -> None:
    """A column of labels, a column for each class, MedMNIST's array, and arrays in Python."""
    images, hot = pictures(12, 0)
    names = np.array(['left', 'right', 'fifth'])
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f'{i}.png')
    places = ['train', 'test', 'val'] * 4
    for separator, file in ((';', 'a.csv'), ('|', 'b.csv')):
        (tmp_path / file).write_text('path,labels,split\n' + ''.join(
            f'{i}.png,{separator.join(names[row > 0])},{places[i]}\n' for i, row in enumerate(hot)))
    (tmp_path / 'c.csv').write_text('image,left,split,right,fifth\n' + ''.join(
        f'{i}.png,{row[0]},{places[i]},{row[1]},{row[2]}.0\n' for i, row in enumerate(hot)))
    np.savez(tmp_path / 'd.npz', **{f'{name}_{what}': values[k::3] for k, name in enumerate(('train', 'test', 'val'))
                                    for what, values in (('images', images), ('labels', hot))})
    arrays = {name: (images[k::3], torch.from_numpy(hot[k::3]).float())
              for k, name in enumerate(('train', 'test', 'val'))}
    order = {'a.csv': ['fifth', 'left', 'right'], 'c.csv': list(names)}
    for spec in (*(tmp_path / name for name in ('a.csv', 'b.csv', 'c.csv', 'd.npz')), arrays):
        source = open_source(spec)
        assert source.train.multi_label and source.train.labels.dtype == torch.uint8
        columns = [list(names).index(name) for name in source.class_names] if isinstance(
            spec, Path) and spec.suffix == '.csv' else [0, 1, 2]
        for k, split in enumerate((source.train, source.test, source.val)):
            assert split is not None and torch.equal(split.labels, torch.from_numpy(hot[k::3])[:, columns])
    assert {name: list(open_source(tmp_path / name).class_names) for name in order} == order


def test_a_share_has_rare_classes_too() -> None:
    labels = torch.zeros(1000, 3, dtype=torch.uint8)
    labels[:500, 0] = labels[:40, 1] = labels[35:45, 2] = 1
    mask = draw(labels, 200, 0)
    assert int(mask.sum()) == 200
    assert labels[mask].sum(0).tolist() == pytest.approx([100, 8, 2], abs=2)


@pytest.mark.parametrize('labels, message', [
    ([[0, 1], [2, 0], [1, 1], [0, 1]], 'column of 0 and 1'), ([[0, float('nan')], [1, 0]] * 2, 'column of 0 and 1'),
    ([[0, 1]] * 4, 'training images of 1 out of 2 classes')])
def test_labels_that_cannot_be(labels: Any, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        open_source((np.zeros((4, 8, 8), np.uint8), np.array(labels)))


def test_one_label_and_several_do_not_go_together(run: zoo.Classifier) -> None:
    images, hot = pictures(8, 0)
    with pytest.raises(ZooError, match='test images of one label each'):
        open_source({'train': (images, hot), 'test': (images, hot[:, 0])})
    with pytest.raises(ZooError, match='gives an image several labels'):
        run.evaluate((images, np.arange(8) % 3))


# -- figures -----------------------------------------------------------------------------------------------------------
def test_figures_against_scikit_learn() -> None:
    metrics = pytest.importorskip('sklearn.metrics')
    draws = torch.Generator().manual_seed(0)
    labels = (torch.rand(300, 4, generator=draws) < torch.tensor([0.5, 0.2, 0.05, 0.])).to(torch.uint8)
    logits = 3 * (torch.randn(300, 4, generator=draws) + 2 * labels - 1)
    found = figures_of(logits, labels, 'abcd', bootstrap=20)
    y, p = labels.numpy(), logits.double().sigmoid().numpy()
    assert found.accuracy == pytest.approx(100 * ((p > 0.5) == y).mean())
    assert found.micro_f1 == pytest.approx(100 * metrics.f1_score(y, p > 0.5, average='micro'))
    assert found.auroc == pytest.approx(metrics.roc_auc_score(y[:, :3], p[:, :3], average='macro'))
    assert found.average_precision == pytest.approx(metrics.average_precision_score(y[:, :3], p[:, :3]))
    assert found.loss == pytest.approx(metrics.log_loss(y.ravel(), p.ravel()))
    for i, row in enumerate(found.classes):
        assert row.f1 == pytest.approx(100 * metrics.f1_score(y[:, i], p[:, i] > 0.5, zero_division=0))
    empty = found.classes[3]
    assert empty.images == 0 and empty.recall is empty.auroc is empty.average_precision is None
    assert all(low < getattr(found, name) < high for name, (low, high) in found.intervals.items())
    temperature = fit_temperature(logits, labels)
    scaled = figures_of(logits, labels, 'abcd', readout=Readout(temperature, True))
    losses = [figures_of(logits / t, labels, 'abcd').loss for t in (temperature * 0.8, temperature, temperature * 1.25)]
    assert min(losses) == losses[1] and scaled.calibrated_error == pytest.approx(
        figures_of(logits / temperature, labels, 'abcd').calibration_error)


# -- from training to predictions --------------------------------------------------------------------------------------
def test_a_training_and_what_it_leaves(run: zoo.Classifier, tmp_path: Path) -> None:
    """The weights say that an image may have several labels; the best by the AUROC of held-out images are kept."""
    result = run.result['figures']
    assert result['test']['auroc'] > 0.7 and result['val']['temperature'] > 0 and 'top1' not in result['test']
    rows = [json.loads(line) for line in (run.folder / 'log.jsonl').read_text().splitlines()]
    assert result['val']['auroc'] == pytest.approx(max(row['val_auroc'] for row in rows))
    again = zoo.load(run.folder)
    figures = again.evaluate(DATA)
    assert figures.scalars() == pytest.approx(result['test'], rel=1e-4)
    assert [path.name for path in again.show(tmp_path)] == ['curves.png', 'reliability.png']
    card = (run.folder / 'card.md').read_text()
    assert 'any number per image' in card and 'sigmoid(logits / ' in card and '| ACC, % |' in card
    every = again.predict(DATA['test'][0], topk=3)
    above = again.predict(DATA['test'][0])
    assert [found.labels for found in above] == [
        tuple(name for name, p in zip(each.labels, each.probabilities, strict=True) if p > 0.5) for each in every]
    assert any(sum(each.probabilities) > 1.1 for each in every)
    empty = zoo.api.Prediction((), (), ())
    assert empty.label == '' and empty.probability == 0


def test_the_commands(run: zoo.Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {f'{name}_{what}': value for name in ('train', 'test')
              for what, value in zip(('images', 'labels'), DATA[name], strict=True)}
    np.savez(tmp_path / 'a.npz', **arrays)
    data = ['--data', f'npz:{tmp_path / "a.npz"}']
    assert main(['eval', str(run.folder), *data, '--per-class', '--reliability', str(tmp_path / 'a.png')]) == 0
    out = capsys.readouterr().out
    assert 'ACC ' in out and 'micro F1' in out and 'recall' in out and 'left' in out and 'top-1' not in out
    for option in (['--confusion', str(tmp_path / 'b.png')], ['--knn'], ['--attack', 'fgsm']):
        assert main(['eval', str(run.folder), *data, *option]) == 2
        assert f'{option[0]} needs one label per image' in capsys.readouterr().err
    assert main(['eval', 'cct_2_3x2.digits', *data]) == 2
    Image.fromarray(DATA['test'][0][3]).save(tmp_path / 'a.png')
    assert main(['predict', 'cct_2_3x2', str(tmp_path / 'a.png'), '--topk', '1']) == 0


@pytest.mark.parametrize('keywords, message', [
    ({'balance': 'sampling'}, "by 'loss'"), ({'teacher': 'resnet18'}, 'leave out the teacher'),
    ({'balance': 'loss', 'multi_label_loss': 'asymmetric'}, "needs multi_label_loss 'bce'"),
    ({'multi_label_loss': 'focal'}, "expected 'bce' or 'asymmetric'")])
def test_what_several_labels_cannot_have(keywords: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=message):
        zoo.train('cct_2_3x2', DATA, output=tmp_path / 'run', **{**SMALL, **keywords})
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('exclusive', [False, True])
def test_one_label_for_each_image_is_told(exclusive: bool, tmp_path: Path) -> None:
    """Of classes that exclude each other, such a table gives no top-1."""
    images = DATA['train'][0]
    labels = np.eye(3, dtype=int)[np.arange(len(images)) % 3]
    labels[0, 0] = exclusive
    keywords = {**SMALL, 'epochs': 1, 'warmup_epochs': 0}
    zoo.train('cct_2_3x2', {'train': (images, labels), 'test': (images, labels)}, output=tmp_path / 'run', **keywords)
    text = (tmp_path / 'run' / 'train.log').read_text()
    assert 'with any number of labels' in text and ('all training images have one: give' in text) == exclusive


def test_the_asymmetric_loss(tmp_path: Path) -> None:
    keywords = {**SMALL, 'epochs': 1, 'warmup_epochs': 0, 'multi_label_loss': 'asymmetric', 'mixup': 0., 'cutmix': 0.}
    found = zoo.train('cct_2_3x2', DATA, output=tmp_path / 'run', **keywords)
    assert found.result['figures']['test']['auroc'] > 0.4
    row = json.loads((tmp_path / 'run' / 'log.jsonl').read_text())
    plain = 0.4 * 0.5 * math.log(2) - 0.6 * 0.45 ** 4 * math.log(0.55)     # of logits 0: a mean over all answers
    assert plain / 2 < row['train_loss'] < 1.5 * plain
    with pytest.raises(ZooError, match='one label per image: leave it out'):
        zoo.train('cct_2_3x2', 'digits', output=tmp_path / 'b', **{**SMALL, 'multi_label_loss': 'asymmetric'})
