"""The command line: what it says is true, and a mistake is one line, exit code 2 and nothing on stdout."""
from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

import tinyvit_zoo
from tinyvit_zoo import autoload
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.weights import Weight, catalogue, save_weights

MODEL = 'cct_2_3x2'
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that has to succeed and returns what it printed."""
    def run_command(*argv: object) -> str:
        assert main([str(arg) for arg in argv]) == 0
        out, err = capsys.readouterr()
        assert err == ''
        return out
    return run_command


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones, but for a head that takes what differs between images, and makes much of it."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL).eval()
    images = torch.stack([create_transform(**resolve_data_config({}, model=model))(picture(i)) for i in range(8)])
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        model.head.weight *= 2 / (features - features.mean(0)).matmul(model.head.weight.T).std()
        model.head.bias.copy_(-model.head.weight @ features.mean(0))
    path = tmp_path_factory.mktemp('weights') / 'random.safetensors'
    save_weights(model.state_dict(), path)
    return path


def picture(seed: int, size: tuple[int, int] = (40, 52)) -> Image.Image:
    """Coarse noise: no two alike, and resizing leaves something of it."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in three folders, and what is to be passed over."""
    folder = tmp_path_factory.mktemp('photos')
    names = ('b.png', 'a.PNG', 'sub/c.png', 'sub/deeper/d.bmp', 'e.webp', '.hidden.png', '.thumbs/f.png')
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    (folder / 'notes.txt').write_text('no image')
    return folder


def predictions(run: Run, *argv: object) -> dict[str, list[dict[str, Any]]]:
    """Of `predict --json`, by image."""
    content = json.loads(run('predict', *argv, '--json'))
    return {entry['image']: entry['predictions'] for entry in content['images']}


def by_class(found: list[dict[str, Any]]) -> list[float]:
    return [entry['probability'] for entry in sorted(found, key=lambda entry: entry['index'])]


def without_weights() -> str:
    return next(n for n in tinyvit_zoo.list_models() if not get_pretrained_cfg(n).has_weights)


# list

def test_list_has_all_models_and_tells_of_each_weight_what_the_catalogue_does(run: Run) -> None:
    records = {r['name']: r for r in json.loads(run('list', '--json'))}
    assert list(records) == [name for model in tinyvit_zoo.list_models() for name in get_arch_pretrained_cfgs(model)]
    assert {r['architecture'] for r in records.values()} == set(tinyvit_zoo.list_models())
    for name, weight in catalogue().items():
        found = records[name]
        assert found['weights']['source'] == weight.source
        assert found['weights']['kind'] == ('package' if weight.file else 'Hub' if weight.hf_hub_id else 'URL')
        assert (found['weights']['published'], found['weights']['measured']) == (weight.published, weight.measured)
        assert found['weights']['dataset'] == weight.data.title
        assert tuple(found['input_size']) == weight.input_size


def test_an_alias_has_the_weights_of_its_model(run: Run) -> None:
    alias, model = (
        [r['weights'] for r in json.loads(run('list', f'{name}.*', '--json'))] for name in ('vit_lite', 'vit_lite_7_4'))
    assert alias == model and all(model)


def test_list_counts_the_parameters_of_each_tag(run: Run) -> None:
    for record in json.loads(run('list', 'cct_7_3x1.*', '--json')):
        model = timm.create_model(record['name'])
        assert record['parameters'] == sum(p.numel() for p in model.parameters())
        assert record['num_classes'] == model.num_classes


def test_list_patterns(run: Run) -> None:
    def names(*argv: str) -> list[str]:
        return [r['name'] for r in json.loads(run('list', '--json', *argv))]

    every = [n for model in tinyvit_zoo.list_models('cvt*') for n in get_arch_pretrained_cfgs(model)]
    assert names('cvt') == names('cvt*') == every
    assert names('cct_7_3x1.shi_c10_300e') == ['cct_7_3x1.shi_c10_300e']
    assert names('cvt*c100*') == [n for n in every if 'c100' in n]
    assert names('c?t_6_[4]') == [n for n in every if n.startswith('cvt_6_4.')]
    assert names('cvt', '--weights') == [n for n in every if get_pretrained_cfg(n).has_weights]
    assert names('cvt', '--no-weights') == [n for n in every if not get_pretrained_cfg(n).has_weights]


def test_list_shows_a_table_with_aligned_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = next(weight for name, weight in catalogue().items() if name.startswith('c'))
    kind = patch_figures(monkeypatch, weight, published={'top1': 91., 'source': 'a paper'}, measured=None)
    head, *rows = run('list', 'c').split('\n\n')[0].splitlines()
    cells = next(row.split() for row in rows if row.startswith(f'{weight.name} '))
    assert cells[3:] == ['x'.join(map(str, weight.input_size)), weight.data.title, '91.00', '-', kind]
    assert all(row[head.index('input') - 2:head.index('input')] == '  ' for row in rows)
    assert not any('untrained' in row for row in rows)


# info

def patch_figures(monkeypatch: pytest.MonkeyPatch, weight: Weight, **figures: Any) -> str:
    """Gives a weight of the catalogue other figures; returns the kind of its source."""
    entries = {**catalogue(), weight.name: dataclasses.replace(weight, **figures)}
    monkeypatch.setattr(sys.modules[Weight.__module__], 'catalogue', lambda: entries)
    return 'package' if weight.file else 'Hub' if weight.hf_hub_id else 'URL'


def lines_of(text: str) -> dict[str, str]:
    """Title and text of the lines that `info` prints."""
    return {line[:14].strip(): line[14:] for line in text.splitlines() if line[:14].strip()}


def test_published_figures_are_never_shown_as_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = next(iter(catalogue().values()))
    patch_figures(monkeypatch, weight, published={'top1': 91.25, 'source': 'a paper'}, measured=None)
    lines = lines_of(run('info', weight.name))
    assert lines['published'] == '91.25 % top-1 (a paper)'
    assert lines['measured'] == 'not measured yet'

    ours = {'top1': 90.5, 'on': 'the test set', 'date': '2026-01-31', 'command': 'tinyvit-zoo eval'}
    patch_figures(monkeypatch, weight, published=None, measured=ours)
    lines = lines_of(run('info', weight.name))
    assert lines['published'] == 'no figure'
    assert lines['measured'] == '90.50 % top-1 on the test set, 2026-01-31: tinyvit-zoo eval'
    assert json.loads(run('info', weight.name, '--json'))['weights']['measured'] == ours


def test_info_without_tag_says_which_is_the_default(run: Run) -> None:
    tags = [name.partition('.')[2] for name in get_arch_pretrained_cfgs('cct_7_3x1')]
    lines = lines_of(run('info', 'cct_7_3x1'))
    assert lines['tag'] == f'{tags[0]} (the default)'
    assert lines['other tags'] == ', '.join(tags[1:])
    assert lines_of(run('info', f'cct_7_3x1.{tags[1]}'))['tag'] == tags[1]


@pytest.mark.parametrize('name', ['cct_7_3x1.shi_c100_300e', 'cct_14_7x2.shi_in1k'])
def test_info_json_is_what_timm_will_use(run: Run, name: str) -> None:
    record, weight, cfg = json.loads(run('info', name, '--json')), catalogue()[name], get_pretrained_cfg(name)
    data = resolve_data_config({}, pretrained_cfg=cfg.to_dict())
    for key in ('input_size', 'mean', 'std'):
        assert tuple(record[key]) == data[key]
    assert (record['crop_pct'], record['interpolation']) == (data['crop_pct'], data['interpolation'])
    assert len(record['label_names']) == record['num_classes'] == cfg.num_classes
    assert (record['weights']['recipe'], record['weights']['origin']) == (weight.recipe, weight.origin)
    assert cfg.paper_name in record['paper'] and record['licence'] == cfg.license


def test_class_names_are_in_the_order_of_the_classes(run: Run) -> None:
    assert json.loads(run('info', MODEL, '--json'))['label_names'][:2] == ['airplane', 'automobile']
    assert json.loads(run('info', 'cct_14_7x2.shi_in1k', '--json'))['label_names'][0].startswith('tench')


def test_info_of_a_model_without_weights(run: Run) -> None:
    assert lines_of(run('info', without_weights()))['weights'] == 'none yet'
    assert json.loads(run('info', without_weights(), '--json'))['weights'] is None


def test_info_wraps_long_notes_and_leaves_addresses_whole(run: Run) -> None:
    for name, weight in catalogue().items():
        text = run('info', name)
        assert weight.source in text
        assert weight.note in ' '.join(text.split())
        assert all(len(line) <= 120 or weight.source in line for line in text.splitlines())


# predict

def test_probabilities_are_those_of_timms_transform_and_the_model(run: Run, weights: Path, photos: Path) -> None:
    model = timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay={'file': str(weights)}).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    with torch.inference_mode():
        expected = model(transform(Image.open(photos / 'b.png')).unsqueeze(0)).softmax(-1)[0].tolist()
    found = predictions(run, MODEL, photos / 'b.png', '--weights', weights, '--topk', 10)[str(photos / 'b.png')]
    assert by_class(found) == pytest.approx(expected, abs=1e-6)
    assert [f['label'] for f in found] == [get_pretrained_cfg(MODEL).label_names[f['index']] for f in found]


def test_classes_are_those_that_the_file_says(run: Run, photos: Path, tmp_path: Path) -> None:
    """Digits keep their names under a tag with others; classes without names have numbers."""
    photo = photos / 'b.png'
    digits = Path(tinyvit_zoo.__file__).parent / 'weights' / 'cct_2_3x2.digits.safetensors'
    found = predictions(run, 'cct_2_3x2.c10', photo, '--weights', digits)[str(photo)]
    assert all(f['label'] == str(f['index']) for f in found)
    model = timm.create_model('cct_2_3x2', num_classes=12)
    save_weights(model.state_dict(), tmp_path / 'w.safetensors', {'pretrained_cfg': json.dumps({'num_classes': 12})})
    found = predictions(run, 'cct_2_3x2.c10', photo, '--weights', tmp_path / 'w.safetensors', '--topk', 99)[str(photo)]
    assert sorted(int(f['label']) for f in found) == list(range(12))


def test_the_most_probable_come_first_and_there_are_k(run: Run, weights: Path, photos: Path) -> None:
    every = predictions(run, MODEL, photos, '--weights', weights, '--topk', 99)
    three = predictions(run, MODEL, photos, '--weights', weights, '--topk', 3)
    for image, found in every.items():
        probabilities = [f['probability'] for f in found]
        assert len(found) == 10 and sum(probabilities) == pytest.approx(1)
        assert probabilities == sorted(probabilities, reverse=True)
        assert three[image] == found[:3]
    assert len({found[0]['index'] for found in every.values()}) > 2  # or mixed-up images would not show


def test_the_batch_size_changes_nothing(run: Run, weights: Path, photos: Path) -> None:
    whole = predictions(run, MODEL, photos, '--weights', weights, '--topk', 10)
    for size in (1, 2):
        batched = predictions(run, MODEL, photos, '--weights', weights, '--topk', 10, '--batch-size', size)
        assert list(batched) == list(whole)
        for image, found in batched.items():
            assert by_class(found) == pytest.approx(by_class(whole[image]), abs=1e-5)


def test_a_folder_is_searched_in_order_and_files_come_as_given(run: Run, weights: Path, photos: Path) -> None:
    inside = [str(photos / name) for name in ('a.PNG', 'b.png', 'e.webp', 'sub/c.png', 'sub/deeper/d.bmp')]
    assert list(predictions(run, MODEL, photos, '--weights', weights)) == inside
    given = [photos / 'e.webp', photos / 'sub', photos / 'a.PNG']
    assert list(predictions(run, MODEL, *given, '--weights', weights)) == [
        inside[2], inside[3], inside[4], inside[0]]


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 256 + 100)


def translucent_palette(image: Image.Image) -> Image.Image:
    small = image.quantize(16)
    small.info['transparency'] = bytes(range(16))
    return small


@pytest.mark.parametrize(('convert', 'like'), [
    pytest.param(lambda image: image.convert('L'), lambda image: image.convert('L').convert('RGB'), id='grey'),
    pytest.param(lambda image: image.convert('RGBA'), lambda image: image, id='RGBA'),
    pytest.param(translucent_palette, lambda image: image.quantize(16).convert('RGB'), id='palette'),
    pytest.param(sixteen_bits, lambda image: image.convert('L').convert('RGB'), id='16 bits'),
])
def test_every_kind_of_image_is_taken_as_rgb(
        run: Run, weights: Path, tmp_path: Path, convert: Callable[[Image.Image], Image.Image],
        like: Callable[[Image.Image], Image.Image],
) -> None:
    other, rgb = tmp_path / 'other.png', tmp_path / 'rgb.png'
    convert(picture(0)).save(other)
    like(picture(0)).save(rgb)
    found = predictions(run, MODEL, other, rgb, '--weights', weights, '--topk', 10)
    assert by_class(found[str(other)]) == pytest.approx(by_class(found[str(rgb)]), abs=1e-5)


def test_a_photo_taken_sideways_is_turned_upright(run: Run, weights: Path, tmp_path: Path) -> None:
    upright, sideways = tmp_path / 'upright.png', tmp_path / 'sideways.png'
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture(0).save(upright)
    picture(0).transpose(Image.Transpose.ROTATE_90).save(sideways, exif=exif)
    found = predictions(run, MODEL, upright, sideways, '--weights', weights, '--topk', 10)
    assert by_class(found[str(sideways)]) == pytest.approx(by_class(found[str(upright)]), abs=1e-5)


def test_classes_without_names_go_by_number(
        run: Run, weights: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('tinyvit_zoo.measure.prediction.label_names', lambda cfg: [])
    found = predictions(run, MODEL, photos / 'b.png', '--weights', weights)[str(photos / 'b.png')]
    assert [f['label'] for f in found] == [str(f['index']) for f in found]


def test_the_table_says_what_the_json_does(run: Run, weights: Path, photos: Path) -> None:
    argv = (MODEL, photos / 'a.PNG', photos / 'b.png', '--weights', weights, '--topk', 2)
    head, *rows = run('predict', *argv).splitlines()
    expected = [([image] if i == 0 else []) + [f'{100 * f["probability"]:.2f}', '%', f['label']]
                for image, found in predictions(run, *argv).items() for i, f in enumerate(found)]
    assert head.split() == ['image', 'probability', 'class']
    assert [row.split() for row in rows] == expected
    assert {row.index('%') for row in rows} == {head.index(' class') - 2}


def test_json_says_which_weights_were_used(run: Run, weights: Path, photos: Path) -> None:
    content = json.loads(run('predict', MODEL, photos / 'b.png', '--weights', weights, '--json'))
    assert content['model'] == f'{MODEL}.{get_pretrained_cfg(MODEL).tag}'
    assert content['weights'] == str(weights)


# mistakes

def complaint(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that is printed."""
    try:
        code = main([str(arg) for arg in argv])
    except SystemExit as e:  # argparse's
        code = e.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert (code, out) == (2, '')
    assert err.startswith('tinyvit-zoo: ') and err.count('\n') == 1 and err.endswith('\n')
    return err


@pytest.mark.parametrize(('argv', 'said'), [
    (['info', 'cct_7_3x9'], 'Did you mean cct_7_3x'),
    (['predict', 'cct_7_3x9', '.'], 'Did you mean cct_7_3x'),
    (['info', 'cct_7_3x1.shi_c10_300'], 'Did you mean shi_c10_300e'),
    (['predict', 'cct_7_3x1.shi_c10_300', '.'], 'Did you mean shi_c10_300e'),
    (['info', 'resnet50'], "'resnet50'"),
    (['info', 'hf-hub:someone/cct'], "'hf-hub:someone/cct'"),
    (['list', 'cctt'], 'Did you mean cct'),
    (['list', '*.nothing'], "'*.nothing'"),
    (['list', 'cct_7_3x1', '--no-weights'], 'without weights'),
    (['predict', MODEL, 'no/such.png'], 'no/such.png'),
    (['predict', MODEL, 'one\nname'], 'one name'),
    (['predict', MODEL, '.', '--device', 'cuda:99'], "'cuda:99'"),
    (['predict', MODEL, '.', '--device', 'meta'], "'meta'"),
    (['predict', MODEL, '.', '--device', 'gpu'], "'gpu'"),
    (['predict', MODEL, '.', '--topk', '0'], "'0'"),
    (['predict', MODEL, '.', '--batch-size', 'many'], "'many'"),
    (['predict', MODEL], 'IMAGE'),
    (['lst'], "'list'"),
    ([], 'COMMAND'),
    (['autoload', 'maybe'], "'status'"),
])
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    assert said in complaint(capsys, *argv)


def test_images_are_looked_at_before_weights_are_fetched(
        capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('timm.create_model', lambda *args, **kwargs: pytest.fail('fetches weights'))
    assert 'notes.txt' in complaint(capsys, 'predict', MODEL, photos, photos / 'notes.txt')
    assert str(tmp_path) in complaint(capsys, 'predict', MODEL, photos, tmp_path)  # an empty folder


def test_a_damaged_image_among_good_ones_is_named_and_nothing_is_printed(
        capsys: pytest.CaptureFixture[str], photos: Path, weights: Path, tmp_path: Path) -> None:
    whole, damaged = tmp_path / 'whole.jpg', tmp_path / 'damaged.jpg'
    picture(0, (200, 200)).save(whole)
    damaged.write_bytes(whole.read_bytes()[:-1000])
    argv = ('predict', MODEL, photos, damaged, '--weights', weights, '--batch-size', 1)
    assert 'damaged.jpg' in complaint(capsys, *argv)
    assert 'damaged.jpg' in complaint(capsys, *argv, '--json')


def test_weights_that_are_missing_or_do_not_fit_are_named(
        capsys: pytest.CaptureFixture[str], photos: Path, weights: Path, tmp_path: Path) -> None:
    assert 'none.pth' in complaint(capsys, 'predict', MODEL, photos, '--weights', tmp_path / 'none.pth')
    assert 'do not fit cct_7_3x1' in complaint(capsys, 'predict', 'cct_7_3x1', photos, '--weights', weights)


def test_a_model_without_weights_predicts_nothing_but_with_a_file(
        run: Run, capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path) -> None:
    name = without_weights()
    assert name in complaint(capsys, 'predict', name, photos)
    save_weights(timm.create_model(name).state_dict(), tmp_path / 'mine.safetensors')
    assert len(predictions(run, name, photos / 'b.png', '--weights', tmp_path / 'mine.safetensors')) == 1


def test_a_system_error_is_one_line_and_ctrl_c_none(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: BaseException) -> None:
        raise error

    monkeypatch.setattr(autoload, 'status', lambda: fail(PermissionError(13, 'Permission denied', '/some/file')))
    assert complaint(capsys, 'autoload', 'status') == 'tinyvit-zoo: /some/file: Permission denied\n'
    monkeypatch.setattr(autoload, 'status', lambda: fail(KeyboardInterrupt()))
    assert main(['autoload', 'status']) == 130
    assert capsys.readouterr() == ('', '')


def test_a_closed_pipe_is_no_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, 'w') as pipe:
        monkeypatch.setattr(sys, 'stdout', pipe)
        assert main(['list', 'cct_2']) == 141
    assert capsys.readouterr().err == ''


def test_names_that_are_no_text_are_printed_all_the_same(run: Run, weights: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9.png'))
    try:
        picture(0).save(path)
    except OSError:
        pytest.skip('this file system takes no such names')
    assert 'caf\\udce9.png' in run('predict', MODEL, path, '--weights', weights)


# the rest

def test_autoload_calls_what_it_says(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / 'start-up.pth'
    monkeypatch.setattr(autoload, 'switch_on', lambda: file)
    monkeypatch.setattr(autoload, 'status', lambda: autoload.Status(True, file, True))
    assert str(file) in run('autoload', 'on')
    assert run('autoload', 'status') == f'{autoload.Status(True, file, True)}\n'
    for was_on, said in ((True, 'autoload is off\n'), (False, 'autoload was off already\n')):
        monkeypatch.setattr(autoload, 'switch_off', lambda was_on=was_on: was_on)
        assert run('autoload', 'off') == said


@pytest.mark.parametrize('command', ['list', 'info', 'predict', 'autoload'])
def test_every_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, '--help'])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert f'  tinyvit-zoo {command} ' in text.partition('example')[2]
    assert command != 'autoload' or autoload.LIMITS.strip() in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['--version'])
    assert capsys.readouterr().out == f'tinyvit-zoo {tinyvit_zoo.__version__}\n'


def test_as_a_module_it_prints_help_and_hands_on_the_exit_code() -> None:
    pipes: dict[str, Any] = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    helped, failed = (
        subprocess.Popen([sys.executable, '-m', 'tinyvit_zoo', *argv], text=True, **pipes)
        for argv in (['--help'], ['info', 'cct_7_3x9']))
    out, err = helped.communicate(timeout=120)
    assert (helped.returncode, err) == (0, '')
    assert out.startswith('usage: tinyvit-zoo ') and 'example' in out
    out, err = failed.communicate(timeout=120)
    assert (failed.returncode, out, err.count('\n')) == (2, '', 1)
