"""`tinyvit-zoo predict` gives what timm's transform and the model give, for every kind of image."""
from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from cli_cases import without_weights
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

import tinyvit_zoo
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.weights import read_weights, save_weights

MODEL = 'cct_2_3x2'
Run = Callable[..., str]


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


def test_images_that_the_memory_does_not_hold(
        refused: Callable[..., str], weights: Path, photos: Path, tmp_path: Path) -> None:
    large = tmp_path / 'large.safetensors'
    save_weights(read_weights(weights), large, {'pretrained_cfg': json.dumps({'input_size': [3, 4096, 4096]})})
    for name in range(40):
        (tmp_path / f'{name}.png').symlink_to(photos / 'b.png')
    assert 'GiB of memory for a batch of 32' in refused('predict', MODEL, tmp_path, '--weights', large)


def predictions(run: Run, *argv: object) -> dict[str, list[dict[str, Any]]]:
    """Of `predict --json`, by image."""
    content = json.loads(run('predict', *argv, '--json'))
    return {entry['image']: entry['predictions'] for entry in content['images']}


def by_class(found: list[dict[str, Any]]) -> list[float]:
    return [entry['probability'] for entry in sorted(found, key=lambda entry: entry['index'])]


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


def test_csv_has_a_row_for_each_class(run: Run, weights: Path, photos: Path) -> None:
    every = predictions(run, MODEL, photos, '--weights', weights, '--topk', 2)
    rows = [*csv.DictReader(run('predict', MODEL, photos, '--weights', weights, '--topk', 2, '--csv').splitlines())]
    assert [(row['image'], row['class'], float(row['probability'])) for row in rows] == [
        (image, found['label'], found['probability']) for image, two in every.items() for found in two]


def test_what_is_no_file_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['predict', 'runs/nope', 'a.png']) == 2
    assert 'There is no file or run directory runs/nope' in capsys.readouterr().err


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
    return Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257)


def translucent_palette(image: Image.Image) -> Image.Image:
    small = image.quantize(16)
    small.info['transparency'] = bytes(range(16))
    return small


@pytest.mark.parametrize(('convert', 'like'), [
    pytest.param(lambda image: image.convert('L'), lambda image: image.convert('L').convert('RGB'), id='grey'),
    pytest.param(lambda image: image.convert('RGBA'), lambda image: image, id='RGBA'),
    pytest.param(translucent_palette, lambda image: image.quantize(16).convert('RGB'), id='palette'),
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


def test_sixteen_bits_are_scaled(run: Run, weights: Path, tmp_path: Path) -> None:
    """Resized without the rounding of 8 bits."""
    wide, narrow = tmp_path / 'wide.png', tmp_path / 'narrow.png'
    sixteen_bits(picture(0)).save(wide)
    picture(0).convert('L').save(narrow)
    found = predictions(run, MODEL, wide, narrow, '--weights', weights, '--topk', 10)
    assert by_class(found[str(wide)]) == pytest.approx(by_class(found[str(narrow)]), abs=0.02)


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


def test_views_change_the_probabilities_and_mirrored_images_do_not(
        run: Run, weights: Path, photos: Path, tmp_path: Path) -> None:
    photo = min(photos.glob('[a-z]*.png'))
    ImageOps.mirror(Image.open(photo)).save(tmp_path / 'mirrored.png')
    args = ('predict', 'cct_2_3x2', photo, tmp_path / 'mirrored.png', '--weights', weights, '--json')
    plain, views = (json.loads(run(*args, *more))['images'] for more in ((), ('--tta', 'flip')))
    first, second = ({p['label']: p['probability'] for p in image['predictions']} for image in views)
    assert first == pytest.approx(second, abs=1e-5)
    assert plain[0]['predictions'] != views[0]['predictions']


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


def test_names_that_are_no_text_are_printed_all_the_same(run: Run, weights: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9.png'))
    try:
        picture(0).save(path)
    except OSError:
        pytest.skip('this file system takes no such names')
    assert 'caf\\udce9.png' in run('predict', MODEL, path, '--weights', weights)


def test_a_model_without_weights_predicts_nothing_but_with_a_file(
        run: Run, refused: Run, photos: Path, tmp_path: Path) -> None:
    name = without_weights()
    assert name in refused('predict', name, photos)
    save_weights(timm.create_model(name).state_dict(), tmp_path / 'mine.safetensors')
    file = tmp_path / 'mine.safetensors'
    assert predictions(run, name, photos / 'b.png', '--weights', file) == predictions(
        run, f'{name}={file}', photos / 'b.png')


def test_images_are_looked_at_before_weights_are_fetched(
        refused: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('timm.create_model', lambda *args, **kwargs: pytest.fail('fetches weights'))
    assert 'notes.txt' in refused('predict', MODEL, photos / 'notes.txt')
    assert str(tmp_path) in refused('predict', MODEL, tmp_path)  # an empty folder


@pytest.mark.parametrize('batch_size', [1, 4])
def test_images_that_cannot_be_read_are_named_and_the_others_classified(
        run: Run, photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        batch_size: int) -> None:
    bad = tmp_path / 'bad'
    bad.mkdir()
    picture(0, (200, 200)).save(bad / 'cut.jpg')
    (bad / 'cut.jpg').write_bytes((bad / 'cut.jpg').read_bytes()[:-1000])
    Image.new('F', (8, 8), 300).save(bad / 'float.tif')
    picture(0).save(bad / 'postscript.eps')
    (bad / 'postscript.eps').rename(bad / 'postscript.png')
    (bad / 'text.png').write_text('no image')
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'link.png').symlink_to('nowhere')
    (tmp_path / 'empty.png').mkdir()
    others = [tmp_path / f'{name}.png' for name in ('pipe', 'link', 'empty')]
    argv = ['predict', MODEL, *map(str, (bad, photos, *others)), '--weights', str(weights), '--json',
            '--batch-size', str(batch_size)]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    content = json.loads(out)['images']
    found = {image['image']: image['predictions'] for image in content if 'predictions' in image}
    assert found == predictions(run, MODEL, photos, '--weights', weights, '--batch-size', batch_size)
    assert [Path(image['image']).name for image in content if 'error' in image] == [
        'cut.jpg', 'float.tif', 'postscript.png', 'text.png', 'pipe.png', 'link.png', 'empty.png']
    assert err.count('\n') == 1 and '7 of 12 images cannot be read' in err and 'postscript.png' in err


def test_what_a_file_is_called_does_not_steer_the_terminal(
        run: Run, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(0).save(tmp_path / 'a\x1b[31m\nb.png')
    out = run('predict', MODEL, tmp_path, '--weights', weights, '--topk', 1)
    assert r'a\x1b[31m\nb.png' in out and '\x1b' not in out and out.count('\n') == 2
    assert main(['predict', MODEL, '\x1b]0;title\x07']) == 2
    assert '\x1b' not in capsys.readouterr().err


def test_weights_that_are_missing_or_do_not_fit_are_named(
        refused: Run, photos: Path, weights: Path, tmp_path: Path) -> None:
    assert 'none.pth' in refused('predict', MODEL, photos, '--weights', tmp_path / 'none.pth')
    assert 'do not fit cct_7_3x1' in refused('predict', 'cct_7_3x1', photos, '--weights', weights)


@pytest.mark.parametrize(('argv', 'said'), [
    (['cct_7_3x9', '.'], 'Did you mean cct_7_3x'), (['cct_7_3x1.shi_c10_300', '.'], 'Did you mean shi_c10_300e'),
    ([MODEL, 'no/such.png'], 'no/such.png'), ([MODEL, 'one\nname'], r'one\nname'),
    ([MODEL, '.', '--device', 'cuda:99'], "'cuda:99'"), ([MODEL, '.', '--device', 'meta'], "'meta'"),
    ([MODEL, '.', '--device', 'gpu'], "'gpu'"), ([MODEL, '.', '--topk', '0'], "'0'"),
    ([MODEL, '.', '--batch-size', 'many'], "'many'"), ([MODEL], 'IMAGE'),
])
def test_a_mistake_is_one_line(refused: Run, argv: list[str], said: str) -> None:
    assert said in refused('predict', *argv)
