"""The catalogue is checked, the default follows from its figures, and what ships is what it promises, to a digit."""
from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tinyvit_zoo import ZooError
from tinyvit_zoo.augment.batched import normalize
from tinyvit_zoo.data.datasets import DATASETS
from tinyvit_zoo.measure.figures import wilson
from tinyvit_zoo.models import _build
from tinyvit_zoo.recipes import PRETRAININGS, RECIPES
from tinyvit_zoo.training.optimizer import learning_rate
from tinyvit_zoo.weights import Weight, catalogue, fetch, save_weights
from tinyvit_zoo.weights.catalogue import FOLDER, default_first

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
from check_catalogue import checked

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / 'tests' / 'fixtures' / 'weights'
SHIPPED = [weight for weight in catalogue().values() if weight.file]
FIGURES = {'top1': 90.5, 'loss': 0.25, 'images': 100, 'on': 'test images', 'date': '2026-01-31',
           'command': 'tinyvit-zoo eval', 'machine': 'a machine'}
ENTRY = {
    'name': 'cct_2_3x2.c10', 'dataset': 'c10', 'input_size': [3, 32, 32], 'crop_pct': 1, 'origin': 'tinyvit_zoo',
    'recipe': 'cct_2_3x2.c10', 'file': 'cct_2_3x2.c10.safetensors', 'sha256': '0' * 64, 'measured': FIGURES,
    'published': {'top1': 89.17, 'source': 'a paper'},
    'trained': {'command': 'tinyvit-zoo train', 'log': 'cct_2_3x2.c10.jsonl', 'date': '2026-01-30', 'minutes': 3,
                'machine': 'a machine'}}
THEIRS = {'name': 'cct_2_3x2.theirs', 'dataset': 'c10', 'input_size': [3, 32, 32], 'crop_pct': 1., 'origin': 'authors',
          'recipe': 'their script', 'url': 'https://example.org/w.pth', 'published': {'top1': 89.17, 'source': 'paper'}}


def weight(entry: dict[str, Any] = ENTRY, **changes: Any) -> Weight:
    return next(iter(checked(json.dumps([{**entry, **changes}])).values()))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ZooError) as error:
        call()
    assert r'\n' not in str(error.value)
    return str(error.value)


# -- what ships --------------------------------------------------------------------------------------------------------
def test_every_field_of_the_catalogue_is_right() -> None:
    assert checked((FOLDER / 'catalogue.json').read_text(encoding='utf-8')) == catalogue()


def test_something_ships_and_nothing_else_lies_there() -> None:
    assert {path.name for path in FOLDER.glob('*.safetensors')} == {w.file for w in SHIPPED} != set()
    assert {path.name for path in FOLDER.glob('*.jsonl')} == {w.trained['log'] for w in SHIPPED}
    assert {path.stem for path in FIXTURES.iterdir()} == {w.name for w in SHIPPED}
    assert sum((FOLDER / w.file).stat().st_size for w in SHIPPED) < 55e6    # the wheel is to stay below 60 MB
    assert {w.recipe for w in catalogue().values() if w.ours} <= {*RECIPES, *PRETRAININGS}


@pytest.mark.parametrize('shipped', SHIPPED, ids=lambda w: w.name)
@torch.no_grad()
def test_the_numbers_of_shipped_weights(shipped: Weight) -> None:
    """Stored pictures give the stored outputs: a change of numerics, of preprocessing or of the file is noticed."""
    stored = load_file(FIXTURES / f'{shipped.name}.safetensors')
    model = timm.create_model(shipped.name, pretrained=True).eval()
    cfg = model.pretrained_cfg
    inputs = normalize(stored['images'], cfg['mean'], cfg['std'])
    assert stored['images'].shape[1:] == tuple(shipped.input_size) and stored['outputs'].std(0).min() > 1e-3
    torch.testing.assert_close(model(inputs), stored['outputs'].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.double()(inputs.double()), stored['outputs'], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('shipped', SHIPPED, ids=lambda w: w.name)
def test_the_file_and_the_catalogue_say_the_same(shipped: Weight) -> None:
    path, cfg = FOLDER / shipped.file, timm.get_pretrained_cfg(shipped.name).to_dict()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == shipped.sha256
    with safetensors.safe_open(path, 'pt') as file:
        told = json.loads(file.metadata()['pretrained_cfg'])
        assert {file.get_tensor(name).dtype for name in file.keys()} <= {torch.float16, torch.int64}
    for key in ('num_classes', 'input_size', 'mean', 'std', 'crop_pct', 'interpolation'):
        assert told[key] == (list(cfg[key]) if isinstance(cfg[key], tuple) else cfg[key]), key
    assert not shipped.measured or told['label_names'] == list(cfg['label_names'])
    rows = [json.loads(line) for line in (FOLDER / shipped.trained['log']).read_text().splitlines()]
    if shipped.measured:    # half precision changed little, and the figure is that of this run
        assert abs(rows[-1]['test_top1'] - shipped.measured['top1']) <= 1
    assert (ROOT / 'docs' / 'images' / 'curves' / f'{shipped.name}.png').stat().st_size > 5000


@pytest.mark.parametrize('shipped', SHIPPED, ids=lambda w: w.name)
def test_the_log_is_that_of_the_recipe(shipped: Weight) -> None:
    """A recipe that changes makes other weights: they are trained anew, or it gets another name."""
    rows = [json.loads(line) for line in (FOLDER / shipped.trained['log']).read_text().splitlines()]
    recipe = {**PRETRAININGS, **RECIPES}[shipped.name]
    assert len(rows) == recipe.total_epochs
    steps = rows[-1]['step'] / len(rows)
    assert rows[0]['lr'] == pytest.approx(learning_rate(recipe, 1 - 1 / steps))



def test_shipped_weights_need_no_network(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, and the README's first snippet."""
    def refuse(*args: object) -> None:
        raise OSError('no network')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    Image.new('RGBA', (40, 30), 'blue').save('photo.png')
    exec((ROOT / 'README.md').read_text(encoding='utf-8').split('```python\n')[1].split('```')[0], {})
    name, probability = capsys.readouterr().out.split()
    assert name in DATASETS['c10'].label_names and 0.1 < float(probability) <= 1
    for weight in SHIPPED:
        assert timm.create_model(weight.name, pretrained=True).num_classes
    assert not (tmp_path / 'cache').exists()


# -- digests -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Has the catalogue promise a file of random weights under a source; returns the file."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'cache'))
    module = sys.modules['tinyvit_zoo.weights.catalogue']

    def promise(**source: str) -> Path:
        path = tmp_path / 'w.safetensors'
        save_weights(timm.create_model('cct_2_3x2').state_dict(), path)
        entry = {**ENTRY, **source, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
        if 'file' not in source:
            del entry['file']
        else:
            monkeypatch.setattr(module, 'FOLDER', tmp_path)
        monkeypatch.setattr(module, 'catalogue', lambda: {ENTRY['name']: weight(entry)})
        monkeypatch.setattr(fetch, 'hf_hub_download', lambda *args, **kwargs: str(path))
        monkeypatch.setattr(fetch, '_SCHEMES', ('file',))
        return path
    return promise


@pytest.mark.parametrize('kind', ['file', 'url', 'hf_hub_id'])
def test_a_file_that_is_not_the_promised_one_is_refused(
        kind: str, promised: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {'file': 'w.safetensors', 'url': (tmp_path / 'w.safetensors').as_uri(), 'hf_hub_id': 'org/name'}[kind]
    path = promised(**{kind: place})
    overlay = {kind: str(path) if kind == 'file' else place}
    model = timm.create_model('cct_2_3x2', pretrained=True, pretrained_cfg_overlay=overlay)
    saved = load_file(path)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())

    found = next((tmp_path / 'cache').rglob('*.safetensors')) if kind == 'url' else path
    for damage in (lambda content: content[:-8], lambda content: content[:-1] + bytes([content[-1] ^ 1])):
        found.write_bytes(damage(found.read_bytes()))
        with monkeypatch.context() as patched:
            patched.setattr(_build, 'read_weights', lambda *args: pytest.fail('was read before it was checked'))
            said = refused(lambda: timm.create_model('cct_2_3x2', pretrained=True, pretrained_cfg_overlay=overlay))
        assert str(found) in said and 'not the file in the catalogue' in said
    if kind == 'file':
        path.unlink()
        said = refused(lambda: timm.create_model('cct_2_3x2', pretrained=True, pretrained_cfg_overlay=overlay))
        assert 'is missing' in said and 'reinstall' in said


def test_what_the_caller_names_is_loaded_though_a_file_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm takes a file before a Hub id and an address; a tag's own file must not win over the caller's source."""
    given = timm.create_model('cct_2_3x2', img_size=16).state_dict()
    save_weights(given, tmp_path / 'w.safetensors')
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'cache'))
    monkeypatch.setattr(fetch, '_SCHEMES', ('file',))
    for overlay in ({'state_dict': given}, {'url': (tmp_path / 'w.safetensors').as_uri()},
                    {'file': str(tmp_path / 'w.safetensors')}):
        model = timm.create_model('cct_2_3x2.digits', pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.head.weight, given['head.weight']), overlay.keys()


# -- the default -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', sorted({w.architecture for w in catalogue().values()}))
def test_the_default_is_said_and_the_data_do_not_speak_against_it(name: str) -> None:
    weights = [w for w in catalogue().values() if w.architecture == name]
    assert [w.default for w in weights].count(True) == 1, f'mark one of them "default": {[w.name for w in weights]}'
    assert objections(weights) == []
    assert timm.get_pretrained_cfg(name).tag == next(w.tag for w in weights if w.default)


def objections(weights: list[Weight]) -> list[str]:
    """What of the figures on the default's own dataset and size speaks against it, beyond the 95 % interval."""
    default = next(w for w in weights if w.default)
    found = []
    for other in weights:
        if other.default or (other.dataset, other.input_size) != (default.dataset, default.input_size):
            continue
        if default.measured and other.measured:
            worse = other.measured['top1'] > default.measured['top1']
        elif default.measured:      # the paper's figure of the other
            worse = bool(other.published) and upper(default) < other.published['top1']
        else:
            worse = bool(other.measured) and bool(default.published) and upper(other) >= default.published['top1']
        found += [other.name] if worse else []
    return found


def upper(weight: Weight) -> float:
    top1, images = weight.measured['top1'], weight.measured['images']
    return wilson(round(top1 * images / 100), images)[1]


def _measured(top1: float, images: int = 10_000) -> dict[str, Any]:
    return {**FIGURES, 'top1': top1, 'images': images}


def test_figures_object_to_a_default() -> None:
    """Half a point is the interval of 10,000 images of CIFAR."""
    paper, default = weight(THEIRS), weight(THEIRS, default=True)       # 89.17 %
    ours = [weight(measured=_measured(top1), default=True) for top1 in (88.78, 88.3)]
    assert [objections([one, paper]) for one in ours] == [[], [paper.name]]
    assert objections([weight(measured=_measured(88.3, images=1000), default=True), paper]) == []
    better = weight(name='cct_2_3x2.c10_long', recipe='cct_2_3x2.c10_long', measured=_measured(90.))
    assert objections([ours[0], better]) == [better.name] and objections([default, better]) == [better.name]
    assert objections([default, weight(measured=_measured(88.3))]) == []
    assert objections([default, weight(THEIRS, name='cct_2_3x2.longer', published={'top1': 95., 'source': 'p'})]) == []
    for other in ({'dataset': 'digits'}, {'input_size': [3, 64, 64]}):  # high figures on something else
        assert objections([default, weight(measured=_measured(99.), **other)]) == []


def test_the_order_of_weights() -> None:
    """The default, the model's own data and size, measured before published; the rest as the catalogue has it."""
    foreign = weight(dataset='digits')
    published, default = weight(THEIRS, name='cct_2_3x2.a'), weight(THEIRS, name='cct_2_3x2.b', default=True)
    weights = [foreign, published, weight(name='cct_2_3x2.x', recipe='cct_2_3x2.x'), default]
    assert [w.tag for w in default_first(weights, 'c10', 32)] == ['b', 'x', 'a', 'c10']


# -- the catalogue -----------------------------------------------------------------------------------------------------
def test_a_right_entry_is_read() -> None:
    found = weight(mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])
    assert found.ours and found.input_size == (3, 32, 32) and found.mean == (0.5, 0.5, 0.5)
    assert found.measured['top1'] == 90.5 and not weight(THEIRS).ours


@pytest.mark.parametrize('changes, message', [
    ({'acuracy': 1}, "no field 'acuracy'"), ({'dataset': 'c11'}, 'Did you mean c10'),
    ({'input_size': [3, 32]}, 'a list of 3 numbers'), ({'input_size': [3, 32, 32.5]}, 'expected a whole number'),
    ({'crop_pct': '1'}, 'expected a number'), ({'crop_pct': True}, 'expected a number'),
    ({'crop_pct': float('nan')}, 'expected a number'), ({'encoder': 1}, 'expected true or false'),
    ({'name': 'cct_2_3x2'}, 'ARCHITECTURE.TAG'), ({'url': 'https://x'}, 'exactly one of'),
    ({'file': ''}, 'exactly one'), ({'file': '../w.safetensors'}, 'file is'), ({'sha256': ''}, '64 hexadecimal'),
    ({'sha256': 'abc'}, '64 hexadecimal'),
    ({'measured': {**FIGURES, 'command': ''}}, "measured: command is '', expected a text that is not empty"),
    ({'measured': {k: v for k, v in FIGURES.items() if k != 'command'}}, 'measured: command is missing'),
    ({'measured': {k: v for k, v in FIGURES.items() if k != 'on'}}, 'measured: on is missing'),
    ({'measured': {**FIGURES, 'date': '31.1.2026'}}, 'YEAR-MONTH-DAY'),
    ({'measured': {**FIGURES, 'top1': 101}}, 'a percentage'), ({'measured': 90.5}, 'expected an object'),
    ({'measured': {**FIGURES, 'throughput': {'images_per_second': 5}}}, 'throughput: batch_size is missing'),
    ({'published': {'top1': 89.17}}, 'published: source is missing'), ({'trained': None}, 'trained with its log'),
    ({'recipe': 'another'}, "expected recipe 'cct_2_3x2.c10'"), ({'origin': None}, 'expected a text'),
])
def test_a_wrong_entry_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    said = refused(lambda: weight(**changes))
    assert message in said and said.startswith('catalogue.json, cct_2_3x2')


def test_a_wrong_catalogue_is_refused() -> None:
    assert 'is there twice' in refused(lambda: checked(json.dumps([ENTRY, ENTRY])))
    assert 'not JSON' in refused(lambda: checked('[{'))
    assert 'not a list' in refused(lambda: checked('{}'))
    assert 'entry 1' in refused(lambda: checked('[3]'))
    without = {key: value for key, value in ENTRY.items() if key != 'crop_pct'}
    assert 'crop_pct is missing' in refused(lambda: checked(json.dumps([without])))
