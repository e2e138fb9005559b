"""CSV files of paths and labels, and MedMNIST by name."""
from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinyvit_zoo import ZooError
from tinyvit_zoo.data.sources import open_source


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in a folder, each of a grey of its own."""
    (tmp_path / 'photos').mkdir()
    for i in range(12):
        Image.new('L', (6, 4), 10 * i).save(tmp_path / 'photos' / f'{i}.png')
    return tmp_path


def write(folder: Path, text: str) -> str:
    (folder / 'labels.csv').write_bytes(text.encode())
    return f'csv:{folder / "labels.csv"}'


def rows(*splits: str, classes: str = 'ab', delimiter: str = ',') -> str:
    return '\n'.join(delimiter.join(filter(None, (
        f'photos/{i}.png', classes[i % len(classes)], splits[i % len(splits)] if splits else ''))) for i in range(12))


def test_paths_labels_and_splits(photos: Path) -> None:
    """Columns in any order and under usual names, more of them, quotes, a byte order mark, other delimiters."""
    source = open_source(write(photos, f'path,label,split\n{rows("train", "train", "Valid", "test")}'))
    assert source.class_names == ('a', 'b') and source.name == 'labels'
    assert [len(part or ()) for part in (source.train, source.val, source.test)] == [6, 3, 3]
    assert source.train.labels.tolist() == [0, 1] * 3 and np.asarray(source.test.read(1)).max() == 70
    other = open_source(write(photos, '\ufeffid;Class;File_Name\r\n' + ''.join(
        f'{i};"class {i % 3}";"photos/{i}.png"\r\n' for i in range(12))))
    assert other.class_names == ('class 0', 'class 1', 'class 2') and (len(other.train), len(other.test)) == (10, 2)
    assert open_source(photos / 'labels.csv').class_names == other.class_names


def test_numbers_are_sorted_as_numbers(photos: Path) -> None:
    text = 'file,class\n' + '\n'.join(f'photos/{i}.png,{(2, 10, 1)[i % 3]}' for i in range(12))
    assert open_source(write(photos, text)).class_names == ('1', '2', '10')


def test_without_splits_the_test_images_are_always_the_same(photos: Path) -> None:
    first, second = (open_source(write(photos, f'path,label\n{rows()}'), seed=seed) for seed in (0, 1))
    assert first.test.index.tolist() == second.test.index.tolist() and len(first.train) + len(first.test) == 12


@pytest.mark.parametrize('text, message', [
    ('', 'begins with nothing: expected a first line path,label'), (rows(), 'begins with photos/0.png'),
    ('path,label', 'a row for each image'), (f'path,label,split\n{rows("trian")}', 'row 2, .*train, val or test'),
    (f'path,label,split\n{rows("test")}', 'none of train'), ('path,label\nphotos/0.png', 'row 2, '),
    ('path,label\nphotos/0.png,a\n,b', 'row 3, '), ('path,label\nphotos/0.png,a\nphotos/1.png,b', 'too few'),
    (f'path,label\n{rows()}\nphotos/77.png,a', '1 of 13 images .*77.png'),
    (f'path,label\n{rows(classes="a")}', '1 out of 1 classes'), ('path,label,Label\na,b,c', "column 'label' twice"),
    ('path,label\n"photos/0.png,a', 'cannot be read as CSV'), ('path,label\nphotos\x00/0.png,a', 'do not exist|CSV')])
def test_a_wrong_table_is_one_line(text: str, message: str, photos: Path) -> None:
    with pytest.raises(ZooError, match=message) as error:
        open_source(write(photos, text))
    assert r'\n' not in str(error.value)


def test_two_columns_of_labels(photos: Path) -> None:
    with pytest.raises(ZooError, match='one label an image and one for several'):
        open_source(write(photos, 'path,label,labels\na/000.png,a,a;b\n'))


def test_no_text(photos: Path) -> None:
    (photos / 'labels.csv').write_bytes(b'path,label\n\xff\xfe,a')
    with pytest.raises(ZooError, match='expected UTF-8'):
        open_source(f'csv:{photos / "labels.csv"}')
    with pytest.raises(ZooError, match='cannot be read as CSV'):
        open_source(f'csv:{photos / "none.csv"}')
    os.mkfifo(photos / 'pipe.csv')
    with pytest.raises(ZooError, match='it is no regular file'):
        open_source(f'csv:{photos / "pipe.csv"}')
    (photos / 'pipe.csv').unlink()


# -- MedMNIST ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def medmnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's interface; its images come from no network."""
    pixels, labels = np.zeros((6, 28, 28), np.uint8), np.arange(6)[:, None] % 2

    class Breast:
        def __init__(self, split: str, download: bool, size: int | None) -> None:
            if size:
                raise RuntimeError('Automatic download failed!')
            parts = {f'{name}_{what}': value for name in ('train', 'val', 'test')
                     for what, value in (('images', pixels), ('labels', labels))}
            np.savez(tmp_path / 'breastmnist.npz', **parts)
    info: dict[str, Any] = {
        'breastmnist': {'python_class': 'Breast', 'task': 'binary-class', 'label': {'0': 'malignant', '1': 'benign'}},
        'chestmnist': {'task': 'multi-label, binary-class', 'label': {'1': 'b', '0': 'a'}}, 'organmnist3d': {}}
    package = SimpleNamespace(INFO=info, Breast=Breast, info=SimpleNamespace(DEFAULT_ROOT=str(tmp_path)))
    monkeypatch.setitem(sys.modules, 'medmnist', package)
    return tmp_path


def test_a_set_by_its_name(medmnist: Path) -> None:
    with pytest.raises(ZooError, match=r'breastmnist\.npz does not exist: give --download'):
        open_source('medmnist:breastmnist')
    source = open_source('medmnist:breastmnist', download=True)
    assert source.class_names == ('malignant', 'benign') and source.val is not None and len(source.test or ()) == 6
    assert open_source('medmnist:breastmnist').name == 'breastmnist'


def test_a_set_of_several_labels(medmnist: Path) -> None:
    arrays = {f'{name}_{what}': value for name in ('train', 'val', 'test') for what, value in (
        ('images', np.zeros((4, 8, 8), np.uint8)), ('labels', np.array([[0, 1], [1, 1], [0, 0], [1, 0]])))}
    np.savez(medmnist / 'chestmnist.npz', **arrays)
    source = open_source('medmnist:chestmnist')
    assert source.class_names == ('a', 'b') and source.train.multi_label and source.train.labels.sum() == 4


@pytest.mark.parametrize('name, message', [
    ('braestmnist', 'no set .*Did you mean breastmnist'), ('organmnist3d', 'no set'), ('breastmnist_65', 'no set'),
    ('breastmnist_64', 'cannot be fetched')])
def test_sets_that_cannot_be_had(name: str, message: str, medmnist: Path) -> None:
    with pytest.raises(ZooError, match=message):
        open_source(f'medmnist:{name}', download=True)


def test_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'medmnist', None)
    with pytest.raises(ZooError, match=r"pip install 'tinyvit-zoo\[medmnist\]'"):
        open_source('medmnist:pathmnist')
