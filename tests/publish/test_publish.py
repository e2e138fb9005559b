"""Publishing: the real client against a Hub on this machine. What was pushed loads, and what failed left nothing."""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from fake_hub import TOKEN, FakeHub, serving
from huggingface_hub import HfApi, constants, file_download
from PIL import Image
from timm.data import ImageNetInfo
from timm.models import PretrainedCfg, _registry
from torch import nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.publish.cards import card, recipe_text
from tinyvit_zoo.publish.hub import _base_model, _write_config, build_repository, push
from tinyvit_zoo.publish.web import write_preprocessing
from tinyvit_zoo.recipes import RECIPES
from tinyvit_zoo.training.own import finetuning_recipe
from tinyvit_zoo.training.train import check_recipe
from tinyvit_zoo.weights import Weight, catalogue, save_weights
from tinyvit_zoo.weights.catalogue import pretrained_cfgs

try:
    from huggingface_hub.utils import close_session
except ImportError:  # before 1.0
    from huggingface_hub.utils import reset_sessions as close_session

needs_repeats = pytest.mark.skipif(
    not hasattr(huggingface_hub.utils, 'close_session'), reason='huggingface_hub before 1.0 gives up at once')
ROOT = Path(__file__).parents[2]
NAME, REPO = 'cvt_2_4.c10', 'org/cvt_2_4.c10'
DRAWN = [f'examples/{name}.png' for name in ('airplane', 'automobile', 'frog', 'horse', 'ship')]
FILES = ['README.md', 'config.json', 'curves.png', *DRAWN, 'log.jsonl', 'model.safetensors', 'onnx/model.onnx',
         'preprocessor_config.json']
MEASURED = {'top1': 87.65, 'top5': 99.1, 'loss': 0.4321, 'images': 10000, 'on': 'test images of CIFAR-10',
            'date': '2026-01-02', 'command': 'tinyvit-zoo eval', 'machine': 'a machine'}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The client is set as its environment variables would, and does not sleep between attempts."""
    with serving() as hub:
        close_session()
        monkeypatch.setattr(constants, 'ENDPOINT', hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition('/{')[2]
        for module in (constants, file_download):
            monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE', f'{hub.url}/{{{template}', raising=False)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True, raising=False)
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        monkeypatch.setattr('huggingface_hub.utils._http.time.sleep', lambda seconds: None)
        yield hub
        close_session()


Ship = Callable[..., Weight]


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ship:
    """Enters a file of random weights in the catalogue and in timm, as if it had come with the package."""
    def ship(name: str = NAME, tensors: dict[str, torch.Tensor] | None = None, **fields: Any) -> Weight:
        architecture, _, tag = name.partition('.')
        file, log = tmp_path / f'{name}.safetensors', tmp_path / f'{name}.jsonl'
        monkeypatch.setattr('tinyvit_zoo.publish.hub.read_packaged', lambda _: log.read_bytes())
        if tensors is None:
            tensors = timm.create_model(architecture).half().state_dict()
        save_weights(tensors, file)
        rows = [{'epoch': i, 'step': i, 'train_loss': 2. / i, 'test_top1': 10. * i} for i in range(1, 4)]
        log.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        trained = {'command': 'tinyvit-zoo train', 'log': str(log), 'date': '2026-01-01', 'minutes': 1.,
                   'machine': 'a machine'}
        weight = Weight(**{
            'name': name, 'dataset': 'c10', 'input_size': (3, 32, 32), 'crop_pct': 1., 'origin': 'tinyvit_zoo',
            'recipe': name, 'measured': MEASURED, 'trained': trained, 'file': str(file),
            'sha256': hashlib.sha256(file.read_bytes()).hexdigest(), **fields})
        monkeypatch.setitem(catalogue(), name, weight)  # type: ignore[arg-type]
        cfg = {**timm.get_pretrained_cfg(architecture).to_dict(),
               **pretrained_cfgs({architecture: ('c10', 32)}, {}, license='apache-2.0')[name]}
        monkeypatch.setitem(_registry._model_pretrained_cfgs, name, PretrainedCfg(**{**cfg, 'tag': tag}))
        monkeypatch.setitem(_registry._model_with_tags, architecture, [*_registry._model_with_tags[architecture], name])
        return weight
    return ship


def without_onnx(weight: Weight, config: dict[str, Any], repo_id: str, folder: Path, source: object) -> tuple[str, str]:
    (folder / 'onnx').mkdir()
    (folder / 'onnx' / 'model.onnx').write_bytes(b'a graph')
    write_preprocessing(config, folder)
    return '', ''


@pytest.fixture(autouse=True)
def quick_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing and exporting take longer than all else: one test draws, those of test_web.py export."""
    monkeypatch.setattr('tinyvit_zoo.publish.hub.write_for_the_web', without_onnx)
    if request.node.name != 'test_dry_run_writes_the_repository_and_asks_no_hub':
        monkeypatch.setattr('tinyvit_zoo.training.run_dir.Run.draw',
                            lambda run: (run.folder / 'curves.png').write_bytes(b'a picture'))


@pytest.fixture
def built(ship: Ship, tmp_path: Path) -> Path:
    build_repository(ship(), REPO, tmp_path / 'built')
    return tmp_path / 'built'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For what does not look into the files."""
    folder = tmp_path / 'folder'
    folder.mkdir()
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(f'---\nlicense: mit\n---\n{name}'.encode() * 1000)
    return folder


@pytest.fixture
def quick(ship: Ship, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`publish` takes the files of `folder`."""
    ship()
    monkeypatch.setattr(
        'tinyvit_zoo.publish.hub.build_repository', lambda weight, repo_id, to, source: shutil.copytree(folder, to))


def publish(*args: str, namespace: str = 'org') -> int:
    return main(['publish', *args, '--namespace', namespace])


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def front_matter(readme: str) -> dict[str, Any]:
    return yaml.safe_load(readme.split('---\n')[1])


# -- what is published -------------------------------------------------------------------------------------------------
def test_dry_run_writes_the_repository_and_asks_no_hub(
        hub: FakeHub, ship: Ship, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight, target = ship(), tmp_path / 'out' / REPO
    assert publish(NAME, '--dry-run', '--output', str(tmp_path / 'out')) == 0
    assert capsys.readouterr().out == f'written {target}\n'
    assert sorted(contents(target)) == FILES
    assert hashlib.sha256((target / 'model.safetensors').read_bytes()).hexdigest() == weight.sha256
    assert Image.open(target / 'curves.png').width > 500
    assert not hub.calls
    assert publish(NAME, '--dry-run', '--output', str(tmp_path / 'out')) == 2
    assert f'{target} already exists' in capsys.readouterr().err


def test_front_matter_holds_what_was_measured(built: Path) -> None:
    found = front_matter((built / 'README.md').read_text())
    assert (found['license'], found['library_name'], found['datasets']) == ('apache-2.0', 'timm', ['uoft-cs/cifar10'])
    assert {'image-classification', 'timm', 'arxiv:2104.05704'} <= set(found['tags'])
    assert [each['src'] for each in found['widget']] == DRAWN and 'base_model' not in found
    (index,) = found['model-index']
    (result,) = index['results']
    assert index['name'] == NAME
    assert result['dataset'] == {'type': 'uoft-cs/cifar10', 'name': 'CIFAR-10', 'split': 'test'}
    assert [(m['name'], m['value']) for m in result['metrics']] == [
        ('Top-1 accuracy', 0.8765), ('Top-5 accuracy', 0.991), ('Loss', 0.4321)]


@pytest.mark.parametrize(('fields', 'named'), [
    ({'file': 'a.safetensors', 'origin': 'tinyvit_zoo'}, 'org/cvt_4_4.c10'), ({'hf_hub_id': 'they/it'}, 'they/it'),
    ({'url': 'https://they.org/a.pth'}, None)])
def test_what_the_weights_began_with_is_named_where_it_is_on_the_hub(
        fields: dict[str, str], named: str | None, ship: Ship, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES['cct_2_3x2.c10'], from_weights='cvt_4_4.c10')
    base = Weight(**{'name': 'cvt_4_4.c10', 'dataset': 'c10', 'input_size': (3, 32, 32), 'crop_pct': 1.,
                     'origin': 'they', 'recipe': '', **fields})
    monkeypatch.setitem(RECIPES, NAME, recipe)
    monkeypatch.setitem(catalogue(), base.name, base)  # type: ignore[arg-type]
    assert _base_model(ship(), REPO) == named


def test_readme_has_the_card_the_recipe_and_the_curves(built: Path) -> None:
    text = (built / 'README.md').read_text()
    assert card(catalogue()[NAME]) in text
    assert recipe_text(NAME) in text and '](curves.png)' in text


def test_snippets_of_the_readme_run(
        hub: FakeHub, ship: Ship, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    ship()
    assert publish(NAME) == 0
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save('image.png')
    first, second = re.findall('```python\n(.*?)```', hub.files(REPO)['README.md'].decode(), re.DOTALL)
    capsys.readouterr()
    exec(first, {})
    label, probability = capsys.readouterr().out.split()
    pytest.importorskip('transformers')
    exec(second, {})
    best = eval(capsys.readouterr().out)[0]
    assert best['label'] == label and best['score'] == pytest.approx(float(probability), abs=1e-5)


# -- pushed and loaded -------------------------------------------------------------------------------------------------
def test_what_was_pushed_loads_bit_for_bit(hub: FakeHub, ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    ship()
    assert publish(NAME) == 0
    assert capsys.readouterr().out == f'published {hub.url}/{REPO}\n'
    assert sorted(hub.files(REPO)) == FILES and len(hub.repositories[REPO]) == 2  # created, one commit
    expected = timm.create_model(NAME, pretrained=True)
    loaded = timm.create_model(f'hf-hub:{REPO}', pretrained=True)
    assert same(loaded, expected)
    fields = ('mean', 'std', 'crop_pct', 'interpolation', 'label_names', 'num_classes', 'license', 'tag')
    assert all(np.all(loaded.pretrained_cfg[name] == np.array(expected.pretrained_cfg[name])) for name in fields)
    changes = dict(pretrained=True, num_classes=3, in_chans=1, img_size=(24, 40))
    resized = [timm.create_model(name, **changes) for name in (f'hf-hub:{REPO}', NAME)]
    for model in resized:
        model.reset_classifier(0)  # fresh, of three classes
    assert same(*resized)
    tuned = finetuning_recipe(f'hf-hub:{REPO}')
    assert (tuned.model, tuned.from_weights, tuned.img_size) == ('cvt_2_4', f'hf-hub:{REPO}', 32)
    check_recipe(tuned)


def test_the_cache_serves_what_is_unchanged_and_what_is_offline(
        hub: FakeHub, ship: Ship, monkeypatch: pytest.MonkeyPatch) -> None:
    ship()
    assert publish(NAME) == 0
    expected = timm.create_model(f'hf-hub:{REPO}', pretrained=True)
    fetched = hub.calls.count('fetch')
    assert fetched == 2
    assert same(timm.create_model(f'hf-hub:{REPO}', pretrained=True), expected)
    assert hub.calls.count('fetch') == fetched
    with monkeypatch.context() as offline:
        offline.setattr(constants, 'HF_HUB_OFFLINE', True)
        close_session()     # before 1.0, a session knows whether it is offline
        calls = len(hub.calls)
        assert same(timm.create_model(f'hf-hub:{REPO}', pretrained=True), expected)
        assert len(hub.calls) == calls
    close_session()
    ship(tensors=timm.create_model('cvt_2_4').half().state_dict())
    assert publish(NAME) == 0
    assert not same(timm.create_model(f'hf-hub:{REPO}', pretrained=True), expected)


@needs_repeats
def test_a_download_that_breaks_off_goes_on(hub: FakeHub, ship: Ship) -> None:
    ship()
    assert publish(NAME) == 0
    hub.faults, hub.times = {'fetch': 'break'}, 2
    assert same(timm.create_model(f'hf-hub:{REPO}', pretrained=True), timm.create_model(NAME, pretrained=True))
    assert hub.times == 0 and hub.calls.count('fetch') == 4


def test_a_flipped_bit_on_the_hub_or_in_the_cache_is_refused(hub: FakeHub, ship: Ship, tmp_path: Path) -> None:
    ship()
    assert publish(NAME) == 0
    files = hub.repositories[REPO][-1]
    wholes = {name: files[name] for name in ('model.safetensors', 'config.json')}
    for name, whole in wholes.items():     # valid, and other than it was
        old, new = (whole[-1:], bytes([whole[-1] ^ 1])) if name[0] == 'm' else (b'airplane', b'airplame')
        files[name] = whole[:-1] + new if name[0] == 'm' else whole.replace(old, new)
        shutil.rmtree(tmp_path / 'cache', ignore_errors=True)
        with pytest.raises(ZooError, match='digest'):
            timm.create_model(f'hf-hub:{REPO}', pretrained=True)
        files[name] = whole
    shutil.rmtree(tmp_path / 'cache')
    timm.create_model(f'hf-hub:{REPO}', pretrained=True)
    cached = next((tmp_path / 'cache').rglob('model.safetensors')).resolve()
    cached.write_bytes(wholes['model.safetensors'][:-1] + b'x')
    with pytest.raises(ZooError, match='to download it again'):
        timm.create_model(f'hf-hub:{REPO}', pretrained=True)


def test_local_dir_loads(ship: Ship, built: Path) -> None:
    assert same(timm.create_model(f'local-dir:{built}', pretrained=True), timm.create_model(NAME, pretrained=True))


@pytest.mark.slow
def test_the_tool_goes_by_the_environment(hub: FakeHub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and the token file; a process of its own, and weights that ship."""
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'token').write_text(TOKEN)
    env = {name: value for name, value in os.environ.items() if name not in ('HF_TOKEN', 'HF_HUB_OFFLINE')}
    env |= {'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_DISABLE_XET': '1'}
    code = ('import sys, tinyvit_zoo.publish.hub as hub, tinyvit_zoo.cli.main as cli\n'
            'hub.write_for_the_web = lambda *args: ("", "")\n'      # takes longer than all else
            'sys.exit(cli.main(sys.argv[1:]))')
    command = [sys.executable, '-c', code, 'publish', 'cct_2_3x2.digits', '--namespace', 'org']
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout == f'published {hub.url}/org/cct_2_3x2.digits\n', done.stderr
    assert same(timm.create_model('hf-hub:org/cct_2_3x2.digits', pretrained=True),
                timm.create_model('cct_2_3x2.digits', pretrained=True))


# -- pushed again ------------------------------------------------------------------------------------------------------
def test_only_what_changed_is_pushed(hub: FakeHub, folder: Path) -> None:
    api = HfApi(token=True)
    assert push(api, folder, REPO) == 'published'
    before = hub.files(REPO)
    hub.calls.clear()
    assert push(api, folder, REPO) == 'unchanged'
    assert len(hub.repositories[REPO]) == 2 and not {'create', 'upload', 'commit'} & set(hub.calls)
    (folder / 'README.md').write_text((folder / 'README.md').read_text() + 'More.\n')
    assert push(api, folder, REPO) == 'updated'
    after = hub.files(REPO)
    assert [name for name in FILES if after[name] != before[name]] == ['README.md']
    assert 'upload' not in hub.calls


def test_what_others_put_there_stays(hub: FakeHub, folder: Path) -> None:
    hub.repositories[REPO] = [{'notes.md': b'by hand', 'README.md': b'old'}]
    assert push(HfApi(token=True), folder, REPO) == 'updated'
    assert sorted(hub.files(REPO)) == sorted([*FILES, 'notes.md']) and hub.files(REPO)['README.md'] != b'old'


def test_all_is_every_weight_that_ships(
        hub: FakeHub, ship: Ship, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name, weight in catalogue().items() if weight.file]:
        monkeypatch.delitem(catalogue(), name)
    ship()
    ship('cvt_4_4.c10')
    assert publish('--all') == 0
    assert capsys.readouterr().out == f'published {hub.url}/{REPO}\npublished {hub.url}/org/cvt_4_4.c10\n'
    ship('cvt_4_4.c10', sha256='0' * 64)
    hub.calls.clear()
    assert publish('--all') == 2
    assert not hub.calls


# -- faults of the Hub -------------------------------------------------------------------------------------------------
STEPS = ('info', 'create', 'validate', 'preupload', 'batch', 'upload', 'verify', 'commit')


@pytest.mark.parametrize(('step', 'fault'), [
    *((step, fault) for step in STEPS for fault in (401, 403, 404, 429, 500, 'break')),
    *((step, 'late') for step in STEPS[1:])])
def test_a_failed_push_leaves_nothing_and_can_be_repeated(
        hub: FakeHub, folder: Path, step: str, fault: int | str) -> None:
    api = HfApi(token=True)
    hub.faults = {step: fault}
    with pytest.raises(ZooError) as error:
        push(api, folder, REPO)
    text = str(error.value)
    assert '\n' not in text and TOKEN not in text and 'Nothing was published or changed' in text
    assert (str(fault) if isinstance(fault, int) else 'cannot be reached') in text
    assert REPO not in hub.repositories
    hub.faults = {}
    assert push(api, folder, REPO) == 'published'
    assert sorted(hub.files(REPO)) == FILES


@pytest.mark.parametrize('fault', [403, 500, 'break', 'late'])
@pytest.mark.parametrize('step', ['preupload', 'upload', 'commit'])
def test_a_failed_update_leaves_the_repository_whole(hub: FakeHub, folder: Path, step: str, fault: int | str) -> None:
    old = dict.fromkeys(FILES, b'old')
    hub.repositories[REPO] = [old]
    hub.faults = {step: fault}
    with pytest.raises(ZooError):
        push(HfApi(token=True), folder, REPO)
    done = step == 'commit' and fault == 'late'  # it was taken, and the answer got lost
    assert hub.files(REPO) == (contents(folder) if done else old)
    hub.faults = {}
    assert push(HfApi(token=True), folder, REPO) == ('unchanged' if done else 'updated')


@needs_repeats
@pytest.mark.parametrize('fault', [429, 500, 'break'])
@pytest.mark.parametrize('step', ['preupload', 'batch', 'upload', 'verify'])
def test_a_fault_that_passes_is_ridden_out(hub: FakeHub, folder: Path, step: str, fault: int | str) -> None:
    hub.faults, hub.times = {step: fault}, 2
    assert push(HfApi(token=True), folder, REPO) == 'published'
    assert hub.files(REPO) == contents(folder)


def test_what_cannot_be_undone_is_said(hub: FakeHub, folder: Path) -> None:
    hub.faults = {'commit': 500, 'delete': 500}
    with pytest.raises(ZooError, match=f'An empty {REPO} may remain there; the same command can be repeated'):
        push(HfApi(token=True), folder, REPO)
    hub.faults = {}
    assert push(HfApi(token=True), folder, REPO) == 'updated'


def test_somebody_elses_repository_is_not_deleted(
        hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes into being between the look and the creation."""
    monkeypatch.setattr(HfApi, 'model_info', lambda api, repo_id: SimpleNamespace(sha=None))
    hub.repositories[REPO] = [{'README.md': b'theirs'}]
    with pytest.raises(ZooError, match='it was created meanwhile'):
        push(HfApi(token=True), folder, REPO)
    assert hub.files(REPO) == {'README.md': b'theirs'}


def test_ctrl_c_leaves_nothing(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('huggingface_hub.lfs._upload_single_part', stop)
    with pytest.raises(KeyboardInterrupt):
        push(HfApi(token=True), folder, REPO)
    assert not hub.repositories


# -- mistakes of the caller --------------------------------------------------------------------------------------------
def offline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, 'HF_HUB_OFFLINE', True)


def unreachable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')


def without_token(patch: pytest.MonkeyPatch) -> None:
    patch.delenv('HF_TOKEN')


def with_token(token: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setenv('HF_TOKEN', token)


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize(('change', 'said'), [
    (offline, 'HF_HUB_OFFLINE is set: unset it, or use --dry-run'),
    (unreachable, 'http://127.0.0.1:9 cannot be reached'),
    (without_token, 'there is no token: run `hf auth login`, or set HF_TOKEN'),
    (with_token('hf_unknown'), 'returned 401, the token is unknown'),
    (with_token('hf_ä\x01'), 'was not pushed'),
])
def test_nothing_is_pushed_without_a_way(
        hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
        change: Callable[[pytest.MonkeyPatch], None], said: str) -> None:
    change(monkeypatch)
    assert publish(NAME) == 2
    out, err = capfd.readouterr()
    assert said in err and 'hf_' not in out + err and not out and not hub.repositories
    assert [line for line in err.splitlines() if line.startswith('tinyvit-zoo:')] == [err.splitlines()[-1]]


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize(('namespace', 'said'), [
    ('nobody', 'returned 403, the token may not write there'),
    ('org/team', "'org/team' is not a namespace"), ('no space', 'is not a namespace'),
    ('', 'is not a namespace'),
])
def test_a_wrong_namespace_is_refused(
        hub: FakeHub, capsys: pytest.CaptureFixture[str], namespace: str, said: str) -> None:
    assert publish(NAME, namespace=namespace) == 2
    assert said in capsys.readouterr().err and not hub.repositories


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize(('args', 'said'), [
    (['cct_7_3x1.shi_c10_300e'], 'is not ours to publish (SHI-Labs/Compact-Transformers, https://shi-labs.com/'),
    (['cvt_2_4.c11'], "no weights 'cvt_2_4.c11' to publish. Did you mean cvt_2_4.c10"),
    ([], 'Give either NAME.TAG or --all'), ([NAME, '--all'], 'Give either NAME.TAG or --all'),
    ([NAME, '--output', 'x'], '--output is for --dry-run'),
])
def test_what_cannot_be_published_is_refused(
        hub: FakeHub, capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert publish(*args) == 2
    assert said in capsys.readouterr().err and not hub.calls


def tampered(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize('damage', [tampered, truncated, Path.unlink])
def test_a_damaged_file_is_not_published(
        hub: FakeHub, ship: Ship, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        damage: Callable[[Path], None]) -> None:
    weight = ship()
    damage(Path(weight.file))
    assert publish(NAME) == 2
    assert publish(NAME, '--dry-run', '--output', str(tmp_path / 'out')) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(weight.file in line for line in lines)
    assert not hub.calls and not (tmp_path / 'out').exists()


def test_weights_of_another_architecture_are_not_published(
        hub: FakeHub, ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    ship(tensors=timm.create_model('cct_2_3x2').state_dict())
    assert publish(NAME) == 2
    assert 'Weights do not fit cvt_2_4' in capsys.readouterr().err and not hub.calls


def test_names_that_only_our_filter_knows_are_not_published(
        hub: FakeHub, ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = timm.create_model('cvt_2_4').state_dict()
    ship(tensors={f'module.{name}': tensor for name, tensor in tensors.items()})
    assert publish(NAME) == 2
    assert 'would not load from the Hub as from here' in capsys.readouterr().err and not hub.calls


def test_a_weight_without_figures_is_not_published(
        hub: FakeHub, ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    ship(measured=None)
    assert publish(NAME) == 2
    assert f'{NAME} has no measured figures' in capsys.readouterr().err and not hub.calls


# -- transformers ------------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize('name', [
    'cct_2_3x2', 'cct_7_3x1_sine', 'sl_vit', 'sl_swin', 'sl_t2t', 'ssl_cait', 'mae_vit_c10', 'mae_lite_vit_tiny_rpe'])
def test_transformers_gives_the_same(name: str, tmp_path: Path) -> None:
    """It builds on the meta device and knows neither filters nor buffers that are not in the file."""
    transformers = pytest.importorskip('transformers')
    model = timm.create_model(name)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    save_weights({name: tensor.half() for name, tensor in model.state_dict().items()}, tmp_path / 'model.safetensors')
    _write_config(model, tmp_path)

    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.randn(2, *model.pretrained_cfg['input_size'])
    tolerance = 1e-5 if name == 'sl_t2t' else 0  # its table of positions is halved too; timm makes it anew
    torch.testing.assert_close(loaded(pixel_values=x).logits, model(x), rtol=0, atol=tolerance)
    features = transformers.AutoModel.from_pretrained(tmp_path).eval()
    expected = model.forward_head(model.forward_features(x), True)
    torch.testing.assert_close(features(pixel_values=x).pooler_output, expected, rtol=0, atol=tolerance)
    names = list(loaded.config.id2label.values())
    assert names == list(model.pretrained_cfg.get('label_names') or ImageNetInfo().label_descriptions())
    assert len(set(names)) < len(names) or loaded.config.label2id[names[1]] == 1


def test_transformers_prepares_images_as_timm_does(built: Path) -> None:
    transformers = pytest.importorskip('transformers')
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    model = timm.create_model(NAME, pretrained=True)
    expected = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(image)
    found = transformers.AutoImageProcessor.from_pretrained(built)(image)['pixel_values'][0]
    assert torch.equal(found, expected)
