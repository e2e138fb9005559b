"""`tools/ship_weights.py` ships what was trained and measures what ships; what is not right leaves nothing behind.

And `tools/update_docs.py`, which it runs, says what is stale.
"""
from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from training_cases import write_npz

from tinyvit_zoo.cli.main import main
from tinyvit_zoo.recipes import PRETRAININGS, RECIPES
from tinyvit_zoo.weights.catalogue import parse

TOOLS = Path(__file__).parents[2] / 'tools'
NAME = 'cct_2_3x2.c10'
RECIPE = dataclasses.replace(
    RECIPES[NAME], img_size=16, epochs=3, batch_size=40, warmup_epochs=1, lr=2e-3, auto_augment='', published=89.17)


def tool(name: str) -> ModuleType:
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(TOOLS))


ship_weights, update_docs = tool('ship_weights'), tool('update_docs')


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A data source and the run of a recipe on it."""
    folder = tmp_path_factory.mktemp('trained')
    data = write_npz(folder / 'c10.npz', train=160, test=200, classes=10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(RECIPES, NAME, RECIPE)
        torch.set_num_threads(1)
        assert main(['train', NAME, '--data', data, '--output', str(folder / 'run'), '--device', 'cpu', '--precision',
                     'fp32']) == 0
    return data, folder / 'run'


class Place:
    """A package of the tests' own to ship into."""

    def __init__(self, folder: Path, data: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.data, self.run, self.capsys = folder, data, run, capsys

    def ship(self, *more: str) -> tuple[int, str]:
        """Exit code, and what was said."""
        code = ship_weights.main([str(self.run), '--data', self.data, *more])
        out, err = self.capsys.readouterr()
        assert (out == '') == (code == 2) and (code == 0 or err.count('\n') == 1)
        return code, out + err

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob('*') if p.is_file()}

    def edit(self, name: str, change: Callable[[dict], None]) -> None:
        content = json.loads((self.run / name).read_text())
        change(content)
        (self.run / name).write_text(json.dumps(content))


@pytest.fixture
def place(trained: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
          capsys: pytest.CaptureFixture[str]) -> Place:
    data, run = trained
    copy = tmp_path / 'run'
    copy.mkdir()
    for path in run.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    folder = tmp_path / 'package'
    (folder / 'weights').mkdir(parents=True)
    (folder / 'weights' / 'catalogue.json').write_text('[]\n')
    monkeypatch.setitem(RECIPES, NAME, RECIPE)
    monkeypatch.setattr(ship_weights, 'FOLDER', folder / 'weights')
    monkeypatch.setattr(ship_weights, 'CURVES', folder / 'curves')
    monkeypatch.setattr(ship_weights, 'FIXTURES', folder / 'fixtures')
    monkeypatch.setattr(ship_weights, 'catalogue', lambda: parse((folder / 'weights' / 'catalogue.json').read_text()))

    def update_docs(*args: object, **kwargs: object) -> subprocess.CompletedProcess:
        (folder / 'documents').touch()
        return subprocess.CompletedProcess('', 0)

    monkeypatch.setattr(ship_weights.subprocess, 'run', update_docs)
    return Place(folder, data, copy, capsys)


@torch.no_grad()
def test_what_ships(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship_weights, 'SECONDS', 0.)
    code, said = place.ship('--note', 'A caveat.', '--benchmark')
    assert code == 0 and NAME in said
    assert set(place.files()) == {
        'SHA256SUMS', 'weights/catalogue.json', f'weights/{NAME}.safetensors', f'weights/{NAME}.jsonl',
        f'curves/{NAME}.png', f'fixtures/{NAME}.safetensors', 'documents'}
    entry = parse((place.folder / 'weights' / 'catalogue.json').read_text())[NAME]
    path = place.folder / 'weights' / entry.file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256 and entry.note == 'A caveat.'
    assert entry.published == {'top1': 89.17, 'source': 'arXiv:2104.05704'} and entry.input_size == (3, 16, 16)
    run, shipped = load_file(place.run / 'weights.safetensors'), load_file(path)
    assert all(torch.equal(shipped[name], tensor.half()) for name, tensor in run.items())
    assert len((place.folder / 'weights' / entry.trained['log']).read_text().splitlines()) == RECIPE.epochs

    import numpy as np
    arrays = np.load(place.data.partition(':')[2])  # the figure of the shipped file, found by hand
    model = timm.create_model('cct_2_3x2', pretrained=True, pretrained_cfg_overlay={'file': str(path)}).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    pixels = torch.from_numpy(arrays['test_images']).permute(0, 3, 1, 2) / 255
    labels = torch.from_numpy(arrays['test_labels']).long()
    logits = model((pixels - mean) / std)
    assert entry.measured['top1'] == pytest.approx(100 * logits.argmax(1).eq(labels).float().mean().item(), abs=1e-3)
    assert entry.measured['loss'] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-3)
    assert entry.measured['images'] == 200 and entry.measured['throughput']['images_per_second'] > 0
    assert NAME in entry.measured['command']
    assert str(place.folder.parent) not in json.dumps([entry.measured, entry.trained])

    stored = load_file(place.folder / 'fixtures' / f'{NAME}.safetensors')
    outputs = model.double()(((stored['images'] / 255. - mean) / std).double())
    torch.testing.assert_close(outputs, stored['outputs'], rtol=1e-5, atol=1e-5)


def test_shipping_again(place: Place) -> None:
    """The same run: the same file, one entry. Another one needs --replace, and none becomes the default or ends it."""
    assert place.ship()[0] == 0
    catalogue = place.folder / 'weights' / 'catalogue.json'
    (entry,) = json.loads(catalogue.read_text())
    assert 'default' not in entry
    catalogue.write_text(f'[\n  {json.dumps({"name": NAME, "default": True, **entry})}\n]\n')
    assert place.ship()[0] == 0
    before = place.files()
    assert place.ship()[0] == 0
    assert place.files() == before
    _resave(place.run, lambda tensors: {**tensors, 'head.bias': tensors['head.bias'] + 0.01})
    code, said = place.ship()
    assert code == 2 and '--replace' in said and place.files() == before
    assert place.ship('--replace')[0] == 0
    assert place.files().keys() == before.keys() and place.files() != before
    (entry,) = json.loads(catalogue.read_text())
    assert entry['default']


def _metadata(run: Path) -> dict[str, str]:
    import safetensors
    with safetensors.safe_open(run / 'weights.safetensors', 'pt') as file:
        return {key: value for key, value in file.metadata().items() if not key.endswith('sha256')}


def _cut(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[:len(content) // 2])


def _resave(run: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(run / 'weights.safetensors')), run / 'weights.safetensors', _metadata(run))


def _edited_pretraining(run: Path) -> None:
    first = dataclasses.asdict(PRETRAININGS['mae_vit_c10.c10_mae'])
    (run / 'pretraining').mkdir()
    told = {'recipe': {**first, 'epochs': 3}, 'fraction': 1., 'val_fraction': 0.}
    (run / 'pretraining' / 'recipe.json').write_text(json.dumps(told))


DAMAGE: dict[str, tuple[Callable[[Place], object], str]] = {
    'unfinished': (lambda p: (p.run / 'result.json').unlink(), 'is not a finished run (result.json'),
    'short log': (lambda p: (p.run / 'log.jsonl').write_text((p.run / 'log.jsonl').read_text().partition('\n')[0]),
                  'has 1 epochs, expected 1 to 3'),
    'edited recipe': (lambda p: p.edit('recipe.json', lambda c: c['recipe'].update(lr=0.1)), 'lr 0.002 -> 0.1'),
    'another seed': (lambda p: p.edit('recipe.json', lambda c: c['recipe'].update(seed=7)), 'seed 0 -> 7'),
    'unknown field': (lambda p: p.edit('recipe.json', lambda c: c['recipe'].update(trick=1)), 'trick None -> 1'),
    'part of the data': (lambda p: p.edit('recipe.json', lambda c: c.update(fraction=0.5)), 'fraction 1 -> 0.5'),
    'edited pre-training': (lambda p: _edited_pretraining(p.run), 'pretraining is not the recipe mae_vit_c10.c10_mae'),
    'no such recipe': (lambda p: p.edit('result.json', lambda c: c.update(weights='cct_2_3x2.c11')), 'no recipe'),
    'damaged record': (lambda p: _cut(p.run, 'result.json'), 'is not JSON'),
    'truncated weights': (lambda p: _cut(p.run, 'weights.safetensors'), 'is damaged'),
    'other architecture': (lambda p: _resave(p.run, lambda t: {k: v for k, v in t.items() if k != 'norm.weight'}),
                           'norm.weight is missing'),
    'other weights': (lambda p: _resave(p.run, lambda t: {k: -v for k, v in t.items()}), 'the run'),
    'too large for half': (lambda p: _resave(p.run, lambda t: {**t, 'head.bias': t['head.bias'] + 1e6}),
                           'head.bias has'),
}


@pytest.mark.parametrize('case', DAMAGE)
def test_what_is_not_right_ships_nothing(case: str, place: Place) -> None:
    damage, message = DAMAGE[case]
    damage(place)
    before = place.files()
    code, said = place.ship()
    assert code == 2 and message in said
    assert place.files() == before


def test_other_images_or_no_room_ship_nothing(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, right = place.files(), place.data
    place.data = write_npz(tmp_path / 'other.npz', train=150, test=20, classes=10)
    assert 'is not what' in place.ship()[1]
    place.data = right
    monkeypatch.setattr(ship_weights, 'MAX_BYTES', 100_000)
    assert 'on the Hub instead' in place.ship()[1]
    assert place.ship('--device', 'tpu')[0] == 2
    assert place.files() == before


def test_a_recipe_may_have_got_fields_since(place: Place) -> None:
    place.edit('recipe.json', lambda content: content['recipe'].pop('color_jitter'))
    place.edit('recipe.json', lambda content: content['recipe'].update(about='Not run by us yet.'))
    assert place.ship()[0] == 0


def test_an_encoder_ships_without_a_figure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = _metadata(place.run)
    cfg = {**json.loads(metadata['pretrained_cfg']), 'num_classes': 0, 'label_names': []}
    tensors = {k: v for k, v in load_file(place.run / 'weights.safetensors').items() if not k.startswith('head.')}
    save_file(tensors, place.run / 'weights.safetensors', {**metadata, 'pretrained_cfg': json.dumps(cfg)})
    assert place.ship()[0] == 0
    entry = parse((place.folder / 'weights' / 'catalogue.json').read_text())[NAME]
    assert entry.encoder and entry.measured is None
    assert load_file(place.folder / 'fixtures' / f'{NAME}.safetensors')['outputs'].shape == (4, 128)


def test_known_copies_have_their_caveat(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    pixels = np.load(place.data.partition(':')[2])['test_images']
    monkeypatch.setitem(ship_weights.COPIES, hashlib.sha256(pixels.tobytes()).hexdigest(), 'Twenty are not exact.')
    assert place.ship()[0] == 0
    assert parse((place.folder / 'weights' / 'catalogue.json').read_text())[NAME].note == 'Twenty are not exact.'


# -- the documents -----------------------------------------------------------------------------------------------------
def test_each_stale_document_is_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('matplotlib')
    point = {'name': 'cct_7_3x1.c10', 'panel': 'CIFAR-10', 'family': 'cct', 'macs': 1181.6, 'top1': 95.1,
             'measured': True}
    state = {'table': 'rows\n', 'cards': 'cards\n', 'costs': [('cct_7_3x1.c10', 'measured', 108.6, 95.1)],
             'points': [point, {**point, 'name': 'cct_2_3x2.x', 'macs': 35., 'measured': False}],
             'sources': update_docs.plot_attention.sources()[-1:]}
    for name in state:
        owner = {'points': update_docs.plot_accuracy, 'sources': update_docs.plot_attention}.get(name, update_docs)
        monkeypatch.setattr(owner, name, lambda name=name: state[name])
    monkeypatch.setattr(update_docs, 'ROOT', tmp_path)
    for name, file in (('README', 'README.md'), ('CARDS', 'MODEL_CARDS.md'), ('IMAGES', 'images')):
        monkeypatch.setattr(update_docs, name, tmp_path / file)
    (tmp_path / 'README.md').write_text(f'before\n{update_docs.BEGIN}{update_docs.END}after\n')
    assert update_docs.main([]) == 0 and update_docs.main(['--check']) == 0
    assert 'rows' in (tmp_path / 'README.md').read_text() and (tmp_path / 'README.md').read_text().endswith('after\n')
    capsys.readouterr()
    weights, _, *image = state['sources'][0]
    for name, value, file in (
            ('table', 'other\n', 'README.md'), ('cards', 'other\n', 'MODEL_CARDS.md'),
            ('costs', [('cct_7_3x1.c10', 'measured', 108.6, 95.2)], 'images/cost.png'),
            ('points', [{**point, 'top1': 95.2}], 'images/accuracy_macs.png'),
            ('sources', [[weights, 'other weights', *image]], 'images/attention.png')):
        state[name] = value
        assert update_docs.main(['--check']) == 1
        assert capsys.readouterr().err == f'{file} is stale: run `python tools/update_docs.py`.\n'
        assert update_docs.main([]) == 0 and update_docs.main(['--check']) == 0


def test_the_picture_shows_the_catalogue() -> None:
    """A point for each weight with a figure, filled where it is ours."""
    from tinyvit_zoo.weights import catalogue
    shown = json.loads(update_docs.drawn_from(update_docs.IMAGES / 'accuracy_macs.png'))
    figures = {w.name: (w.measured or w.published)['top1'] for w in catalogue().values() if w.measured or w.published}
    assert {point['name'].partition(' ')[0]: point['top1'] for point in shown} == figures
    measured = {w.name for w in catalogue().values() if w.measured}
    assert {point['name'].partition(' ')[0] for point in shown if point['measured']} == measured


