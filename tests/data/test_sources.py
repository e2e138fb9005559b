"""Every source from a small copy of its published layout, and the line that each wrong one gets."""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from data_cases import decoded, refusal, sizes

from tinyvit_zoo.data.datasets import DATASETS
from tinyvit_zoo.data.sources import normalization, open_source, syntax
from tinyvit_zoo.errors import ZooError


@pytest.mark.parametrize('name, module, write', [
    ('cifar10', 'cifar', fakes.cifar10),
    ('cifar100', 'cifar', fakes.cifar100),
    ('svhn', 'svhn', fakes.svhn),
    ('stl10', 'stl10', fakes.stl10),
    ('mnist', 'mnist', fakes.mnist),
    ('fashion_mnist', 'mnist', lambda root: fakes.mnist(root, 'FashionMNIST')),
])
def test_arrays_of_torchvision(
        name: str, module: str, write: Callable[[Path], tuple[np.ndarray, np.ndarray]], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels, labels and class names are those that were written, upright and in order."""
    if module != 'mnist':
        fakes.trust_files(monkeypatch, module)
    images, labels = write(tmp_path)
    source = open_source(f'{name}:{tmp_path}')
    assert source.name == name and source.info in DATASETS.values()
    assert source.class_names == source.info.label_names and len(source.class_names) == source.info.num_classes
    assert source.train.labels.tolist() == labels.tolist() and source.train.labels.dtype == torch.int64
    expected = images if images.ndim == 4 else np.repeat(images[..., None], 3, 3)
    assert (decoded(source.train).permute(0, 2, 3, 1).numpy() == expected).all()
    assert (np.asarray(source.train.read(3)) == images[3]).all()
    assert sizes(source) == (len(images), 0, {'cifar100': 100}.get(name, 10))


def test_flowers_has_its_published_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.trust_files(monkeypatch, 'flowers102')
    fakes.flowers102(tmp_path)
    source = open_source(f'flowers102:{tmp_path}', val_fraction=0.5)
    assert sizes(source) == (3, 3, 3)
    assert source.test is not None and source.test.labels.tolist() == [2, 1, 0]
    assert source.test.name(0).endswith('image_00009.jpg') and source.test.read(0).size == (30, 20)
    assert source.class_names[:2] == ('pink primrose', 'hard-leaved pocket orchid')


@pytest.mark.parametrize('name', ['cifar10', 'mnist', 'svhn', 'stl10', 'flowers102'])
def test_a_set_that_is_not_there(name: str, tmp_path: Path) -> None:
    text = refusal(f'{name}:{tmp_path / "none"}')
    assert 'none' in text and '--download' in text and 'expected' in text


def test_download_is_passed_on_and_its_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(self: Any) -> None:
        asked.append(self.root)
        raise OSError('no route\nto host')

    monkeypatch.setattr('torchvision.datasets.CIFAR10.download', download)
    assert 'no route to host' in refusal(f'cifar10:{tmp_path}', download=True)
    assert asked == [tmp_path]
    assert 'cannot be downloaded' in refusal(f'folder:{tmp_path}', download=True)


@pytest.mark.parametrize('name, module', [('svhn:x', 'scipy'), ('digits', 'sklearn'), ('hf:x', 'datasets')])
def test_a_missing_library_names_the_pip_command(
        name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.trust_files(monkeypatch, 'svhn')
    fakes.svhn(tmp_path / 'x')
    monkeypatch.chdir(tmp_path)
    for loaded in [key for key in sys.modules if key == module or key.startswith(f'{module}.')]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install 'tinyvit-zoo[{'hf' if module == 'datasets' else 'train'}]'" in refusal(name)


def write_npz(path: Path, **changes: Any) -> Path:
    arrays = {'train_images': fakes.pixels(20, 28, 28), 'train_labels': np.arange(20)[:, None] % 4,
              'val_images': fakes.pixels(8, 28, 28), 'val_labels': np.arange(8)[:, None] % 4,
              'test_images': fakes.pixels(9, 28, 28), 'test_labels': np.arange(9)[:, None] % 4}
    arrays |= changes
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_npz_grey(tmp_path: Path) -> None:
    path = write_npz(tmp_path / 'organ.npz', train_extra=np.zeros(3))
    source = open_source(f'npz:{path}')
    assert source.name == 'organ' and sizes(source) == (20, 8, 9) and source.class_names == ('0', '1', '2', '3')
    assert decoded(source.train).shape == (20, 3, 28, 28) and decoded(source.train, 1).shape == (20, 1, 28, 28)


def test_npz_rgb_without_validation(tmp_path: Path) -> None:
    images = fakes.pixels(20, 6, 5, 3)
    path = write_npz(tmp_path / 'x.npz', val_images=None, val_labels=None, train_images=images,
                     train_labels=(np.arange(20) % 4).astype(np.uint8))
    source = open_source(f'npz:{path}', val_fraction=0.2)
    assert sizes(source) == (16, 4, 9)
    assert source.train.index is not None
    assert (decoded(source.train).permute(0, 2, 3, 1).numpy() == images[source.train.index.numpy()]).all()


@pytest.mark.parametrize('changes, message', [
    (dict(train_images=None, train_labels=None), 'expected train_images'),
    (dict(test_images=None), 'one of test_images and test_labels'),
    (dict(train_labels=np.zeros((20, 14), int)), 'images of 0 out of 14 classes'),
    (dict(train_labels=np.full((20, 14), 2)), 'expected a column of 0 and 1 for each class'),
    (dict(train_labels=np.arange(19) % 4), 'for 20 images'),
    (dict(train_labels=np.linspace(0, 1, 20)), 'float64'),
    (dict(train_labels=np.arange(20) % 4 - 1), 'has train labels from -1 to 2'),
    (dict(train_labels=np.arange(20) % 4 * 2), 'images of 4 out of 7 classes'),
    (dict(train_labels=np.zeros(20, int)), 'images of 1 out of 1 classes'),
    (dict(test_labels=np.arange(9)), 'has test labels from 0 to 8: expected 0 to 3'),
    (dict(train_images=np.zeros((20, 28, 28))), 'float64'),
    (dict(train_images=fakes.pixels(20, 28, 28, 28)), 'volumes'),
    (dict(train_images=fakes.pixels(20, 3, 16, 16)), 'channels in front'),
    (dict(train_images=fakes.pixels(20, 3, 28, 28)), 'channels in front'),
    (dict(train_images=fakes.pixels(20, 4, 16, 16)), 'channels in front'),
    (dict(train_images=np.array([{}] * 20)), 'plain arrays'),
])
def test_npz_in_a_wrong_layout(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_npz(tmp_path / 'x.npz', **changes)
    with pytest.raises(ZooError, match=message):
        open_source(f'npz:{path}')
    assert '\n' not in refusal(f'npz:{path}')


@pytest.mark.parametrize('content', [b'', b'nothing', b'PK\x03\x04 broken', None])
def test_npz_that_is_none(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / 'x.npz'
    if content is not None:
        path.write_bytes(content)
    assert ('There is no file' if content is None else 'damaged') in refusal(f'npz:{path}')


def test_npz_cut_short_or_changed(tmp_path: Path) -> None:
    """The zip's own checksums see it."""
    path = write_npz(tmp_path / 'x.npz')
    whole = bytearray(path.read_bytes())
    whole[2000] ^= 0xff
    path.write_bytes(whole)
    assert 'damaged' in refusal(f'npz:{path}')
    path.write_bytes(whole[:3000])
    assert 'damaged' in refusal(f'npz:{path}')


def test_digits_is_embedded_and_split_once() -> None:
    first, second = open_source('digits'), open_source('digits', seed=5)
    assert sizes(first) == (1437, 0, 360) == sizes(second)
    assert first.test is not None and second.test is not None
    assert (first.test.index == second.test.index).all()
    assert not set(first.train.index.tolist()) & set(first.test.index.tolist())
    assert first.test.index.sum() == 331_195 and first.test.index[:3].tolist() == [1, 11, 31]  # for all time
    counts = first.test.labels.bincount()
    assert len(counts) == 10 and counts.min() >= 34 and counts.max() <= 38
    pixels = decoded(first.train, 1)
    assert pixels.shape == (1437, 1, 8, 8) and pixels.min() == 0 and pixels.max() == 255


def test_digits_constants_are_what_is_measured() -> None:
    source = open_source('digits')
    assert source.info is not None
    mean, std = normalization(replace(source, info=None), 32)
    assert mean[0] == pytest.approx(source.info.mean[0], abs=1e-4)
    assert std[0] == pytest.approx(source.info.std[0], abs=1e-4)


@pytest.mark.parametrize('spec, message', [
    ('cifar', 'Did you mean cifar10 or cifar100'),
    ('cifar10', "'cifar10', expected cifar10:PATH"),
    ('digits:x', "'digits:x', expected digits"),
    ('', 'expected one of digits, cifar10:PATH'),
])
def test_a_wrong_spec_is_one_line(spec: str, message: str) -> None:
    assert message in refusal(spec)


def test_a_bare_path_gets_a_hint(tmp_path: Path) -> None:
    assert f'Did you mean folder:{tmp_path}' in refusal(tmp_path)


@pytest.mark.parametrize('options', [dict(val_fraction=1.), dict(val_fraction=-.1), dict(fraction=0.)])
def test_shares_out_of_range(options: dict[str, float]) -> None:
    assert 'expected 0 to below 1; fraction' in refusal('digits', **options)


def test_a_share_too_small_for_one_image() -> None:
    assert 'takes none of' in refusal('digits', val_fraction=1e-5)


def test_every_source_is_documented() -> None:
    assert {*syntax()} == {
        'digits', 'cifar10', 'cifar100', 'svhn', 'mnist', 'fashion_mnist', 'flowers102', 'stl10', 'tiny_imagenet',
        'cinic10', 'folder', 'csv', 'npz', 'medmnist', 'hf'}


def test_validation_is_cut_from_training_alone() -> None:
    whole, cut = open_source('digits'), open_source('digits', val_fraction=0.1, seed=3)
    assert cut.val is not None and whole.test is not None and cut.test is not None
    assert sizes(cut) == (1293, 144, 360)
    parts = [set(split.index.tolist()) for split in (cut.train, cut.val)]
    assert parts[0] | parts[1] == set(whole.train.index.tolist()) and not parts[0] & parts[1]
    assert (whole.test.index == cut.test.index).all()
    again, other = open_source('digits', val_fraction=0.1, seed=3), open_source('digits', val_fraction=0.1, seed=4)
    assert again.val is not None and other.val is not None
    assert (again.val.index == cut.val.index).all() and set(other.val.index.tolist()) != parts[1]


def test_fractions_are_balanced_nested_and_leave_validation_alone() -> None:
    quarter = open_source('digits', val_fraction=0.1, fraction=0.25)
    half = open_source('digits', val_fraction=0.1, fraction=0.5)
    whole = open_source('digits', val_fraction=0.1)
    assert quarter.val is not None and whole.val is not None
    assert (quarter.val.index == whole.val.index).all()
    assert (len(quarter.train), len(half.train)) == (323, 647)
    small, large = (set(source.train.index.tolist()) for source in (quarter, half))
    assert small < large
    shares = quarter.train.labels.bincount() / whole.train.labels.bincount()
    assert shares.min() > 0.24 and shares.max() < 0.26


def test_normalisation_is_known_or_measured(tmp_path: Path) -> None:
    images = np.stack([np.full((8, 8, 3), (51, 102, 204), np.uint8), np.full((8, 8, 3), (153, 102, 0), np.uint8)])
    path = write_npz(tmp_path / 'x.npz', train_images=images.repeat(10, 0), train_labels=np.arange(20) % 4)
    mean, std = normalization(open_source(f'npz:{path}'), 8)
    assert mean == pytest.approx((0.4, 0.4, 0.4)) and std == pytest.approx((0.2, 1 / 255, 0.4))
    digits = open_source('digits')
    assert normalization(digits, 32) == ((0.3087,) * 3, (0.3482,) * 3)


def test_measuring_names_every_unreadable_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', str(tmp_path / 'cache'))
    root = fakes.image_folder(tmp_path / 'set', {'a': 300, 'b': 300})
    source = open_source(f'folder:{root}')
    mean, std = normalization(source, 8)
    assert mean == pytest.approx((0.5,) * 3, abs=0.02) and std == pytest.approx((0.29,) * 3, abs=0.01)
    for name in ('a/000.png', 'b/299.png'):
        (root / name).write_bytes(b'')
    with pytest.raises(ZooError, match=r'2 of 600 images cannot be read.*000\.png.*299\.png'):
        normalization(source, 8)
