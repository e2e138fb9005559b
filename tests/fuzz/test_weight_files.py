"""Damaged weight files, published folders and data files of the package are refused in one line, or give the same."""
import io
import json
import logging
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from fuzz_cases import JSON, cases, damaged, outcome
from hypothesis import given, strategies as st
from hypothesis.strategies import DataObject

from tinyvit_zoo.publish.hub import _write_config
from tinyvit_zoo.runtime import packaged
from tinyvit_zoo.weights import catalogue, check_cfg, read_cfg, read_weights, save_weights, unwrap
from tinyvit_zoo.weights.catalogue import FOLDER
from tinyvit_zoo.weights.files import read_metadata, tensors_digest

NAME = 'cct_2_3x2.digits'
CFG = {'num_classes': 4, 'input_size': [3, 16, 16], 'mean': [0.1, 0.2, 0.3], 'std': [0.5, 0.6, 0.7],
       'crop_pct': 1.0, 'interpolation': 'bicubic', 'label_names': ['a', 'b', 'c', 'd']}
TENSORS = {'a.weight': torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), 'b': torch.arange(7),
           'c': torch.ones(2, dtype=torch.float16)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('fuzz')


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def _safetensors() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_weights(TENSORS, Path(folder, 'w'), {'pretrained_cfg': json.dumps(CFG), 'recipe': 'cct_2_3x2.mine'})
        return Path(folder, 'w').read_bytes()


def _torch(legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({'model': TENSORS, 'epoch': 3}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _zip(name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _content(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    cfg = read_cfg(path)
    return unwrap(read_weights(path)), {'cfg': cfg, 'recipe': read_metadata(path).get('recipe')}


def _same(found: Any, wanted: Any) -> bool:
    return found[1] == wanted[1] and found[0].keys() == wanted[0].keys() and all(
        torch.equal(tensor, wanted[0][name]) for name, tensor in found[0].items())


KINDS: dict[str, Callable[[], bytes]] = {
    'a.safetensors': _safetensors, 'b.zip': lambda: _zip('w.safetensors', _safetensors()),
    'c.pth': _torch, 'd.zip': lambda: _zip('w.pth', _torch()),
    'e.zip': lambda: _zip('w.pth', _torch(), zipfile.ZIP_LZMA), 'f.zip': lambda: _zip('w.pth', _torch(legacy=True))}


@pytest.mark.parametrize('kind', KINDS)
@cases(120)
@given(data=st.data())
def test_weight_files(data: DataObject, kind: str, folder: Path) -> None:
    path, content = folder / kind, KINDS[kind]()
    path.write_bytes(content)
    wanted = _content(path)
    path.write_bytes(data.draw(damaged(content) | damaged(content, max(0, len(content) - 600))))
    found, message = outcome(lambda: _content(path))
    assert message or _same(found, wanted)


@cases(60)
@given(data=st.data())
def test_a_format_without_checksums_ends_in_one_line_too(data: DataObject, folder: Path) -> None:
    path = folder / 'legacy.pth'
    path.write_bytes(data.draw(damaged(_torch(legacy=True))))
    outcome(lambda: _content(path))


@cases(100)
@given(cfg=JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(CFG, JSON)))
def test_any_json_as_the_cfg(cfg: Any, folder: Path) -> None:
    """Refused, or something that a model can be made of."""
    path = folder / 'cfg.safetensors'
    save_weights(TENSORS, path, {'pretrained_cfg': json.dumps(cfg)})
    found, message = outcome(lambda: read_cfg(path))
    if not message:
        assert found == cfg and found.keys() <= CFG.keys() | {'crop_mode'}
        timm.create_model('cct_2_3x2', device='meta', pretrained_cfg_overlay={**found, 'input_size': (3, 16, 16)})


@cases(100)
@given(content=st.recursive(
    st.just(torch.ones(2)) | st.none() | st.integers(), lambda inner: st.dictionaries(st.sampled_from(
        ['model', 'state_dict', 'module', 'a', 'module.a', 1, None, ('a',)]), inner, max_size=4), max_leaves=6))
def test_odd_checkpoints(content: Any) -> None:
    found, message = outcome(lambda: unwrap(content if isinstance(content, dict) else {}))
    assert message or all(isinstance(name, str) for name in found or ())


def test_a_checkpoint_that_holds_itself_or_a_bomb(folder: Path) -> None:
    content: dict[str, Any] = {'epoch': 3}
    content['model'] = content
    assert 'no tensors' in outcome(lambda: unwrap(content))[1]
    path = folder / 'bomb.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive, archive.open('w.pth', 'w') as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert 'unpacked it has 0.3 GB' in outcome(lambda: read_weights(path))[1]


def _published(folder: Path) -> Path:
    place = folder / 'published'
    if not place.exists():
        place.mkdir()
        shutil.copyfile(FOLDER / catalogue()[NAME].file, place / 'model.safetensors')
        _write_config(timm.create_model(NAME, pretrained=True), place)
    return place


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
@cases(30)
@given(data=st.data())
def test_published_folders(data: DataObject, name: str, folder: Path) -> None:
    """By `local-dir:`; `hf-hub:` goes the same way. What is no JSON timm reads, and refuses, before us."""
    place = _published(folder)
    path, content = place / name, (place / name).read_bytes()

    def load() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        model = timm.create_model(f'local-dir:{place}', pretrained=True)
        return model.state_dict(), model.pretrained_cfg
    wanted = load()
    try:
        path.write_bytes(data.draw(damaged(content) | damaged(content, 0, 3000)))
        found, message = outcome(load)
        assert message or _same(found, wanted)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as e:    # timm's
        assert name == 'config.json' and 'tinyvit_zoo' not in str(e)
    finally:
        path.write_bytes(content)


def _of_before(path: Path, cfg: Any = CFG, **changed: Any) -> None:
    """Write safetensors as earlier versions did: metadata have no digest."""
    metadata = {'recipe': 'cct_2_3x2.mine', 'pretrained_cfg': json.dumps(cfg)}
    metadata['tensors_sha256'] = tensors_digest(TENSORS)
    safetensors.torch.save_file(TENSORS, path, {key: text for key, text in {**metadata, **changed}.items() if text})


@pytest.mark.parametrize('write', [
    _of_before, lambda path: path.write_bytes(_torch(legacy=True))], ids=['no digest of metadata', 'no checksum'])
def test_a_file_without_a_digest_says_how_to_get_one(
        write: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The command that the warning shows works as it stands."""
    logging.disable(logging.NOTSET)
    path = tmp_path / "it's old.pth" if write is not _of_before else tmp_path / 'old.safetensors'
    write(path)
    before = _content(path)
    exec(shlex.split(caplog.messages[-1].partition('python -c ')[2])[0])
    caplog.clear()
    assert _same(_content(path.with_suffix('.safetensors')), before) and not caplog.messages
    assert 'metadata_sha256' in read_metadata(path.with_suffix('.safetensors'))


@pytest.mark.parametrize('changed', [
    {'pretrained_cfg': ''}, {'tensors_sha255': tensors_digest(TENSORS), 'tensors_sha256': ''},
    {'cfg': {**CFG, 'std': [0.5, 8.6, 0.7]}}, {'cfg': {**CFG, 'input_size': [3, 16, 20]}}], ids=str)
def test_metadata_without_a_digest_hold_what_a_training_writes(changed: dict[str, Any], tmp_path: Path) -> None:
    _of_before(tmp_path / 'a.safetensors', **changed)
    assert 'is damaged' in outcome(lambda: _content(tmp_path / 'a.safetensors'))[1]


def test_a_config_without_a_digest_agrees_with_the_weights(folder: Path) -> None:
    place = _published(folder)
    path, content = place / 'config.json', (place / 'config.json').read_text()
    for changes, problem in (({}, ''), ({'mean': [0.3, 0.3, 0.4]}, 'has mean'), ({'std': [0.5] * 3}, 'has std')):
        config = json.loads(content)
        config['pretrained_cfg'].update(changes)
        for name, said in (('', problem), ('config_shb256', 'its digest does not match')):
            digest = config.pop('config_sha256', config.pop('config_shb256', ''))
            path.write_text(json.dumps({**config, **({name: digest} if name else {})}))
            assert said in outcome(lambda: timm.create_model(f'local-dir:{place}', pretrained=True))[1]
            config['config_sha256'] = digest
    path.write_text(content)


def test_a_config_with_a_digest_is_of_the_weights_beside_it(folder: Path) -> None:
    """Others of ours are whole too, and fit."""
    place = _published(folder)
    path, content = place / 'model.safetensors', (place / 'model.safetensors').read_bytes()
    shutil.copyfile(FOLDER / catalogue()['cct_2_3x2.c10'].file, path)
    assert 'holds other weights than' in outcome(lambda: timm.create_model(f'local-dir:{place}', pretrained=True))[1]
    path.write_bytes(content)


@pytest.mark.parametrize('name', ['weights/catalogue.json', 'data/classes.json', 'publish/page/app.js'])
@cases(60)
@given(data=st.data())
def test_data_files_of_the_package(data: DataObject, name: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        content, sums = (FOLDER.parent / name).read_bytes(), (FOLDER.parent / 'SHA256SUMS').read_bytes()
        patched.setattr(packaged, 'PACKAGE', folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.draw(damaged(content)))
        (folder / 'SHA256SUMS').write_bytes(sums)
        found, message = outcome(lambda: packaged.read_packaged(name))
        assert message or found == content


def test_metadata_are_checked_by_value() -> None:
    for key, value in (('num_classes', -5), ('num_classes', True), ('std', [float('nan')] * 3), ('std', [0, 1, 1]),
                       ('mean', [0.1, 0.2]), ('input_size', [3, 16]), ('crop_pct', 1e-9), ('std', [1e-320] * 3),
                       ('std', [0.5]), ('interpolation', 'random'), ('label_names', ['a', 'b']),
                       ('file', '/etc/passwd'), ('custom_load', True), ('interpolation', [])):
        assert outcome(lambda key=key, value=value: check_cfg({**CFG, key: value}, 'Here'))[1].startswith('Here')
