"""Folders of images from a small copy of their layout, and the line that each wrong layout gets."""
from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from data_cases import decoded, refusal, sizes

from tinyvit_zoo.data.datasets import DATASETS
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.data.splits import digests_of, repeated
from tinyvit_zoo.errors import ZooError


@pytest.mark.parametrize('names', [('training', 'testing'), ('Training', 'test'), ('train', 'testing')])
def test_other_names_of_splits(tmp_path: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    for name in (*names, 'dev', 'extra'):
        fakes.image_folder(tmp_path / name, {'a': 3, 'b': 3})
    (tmp_path / names[0] / 'a/000.png').rename(tmp_path / names[0] / 'loose.png')
    source = open_source(f'folder:{tmp_path}')
    assert source.test and source.val and source.class_names == ('a', 'b')
    assert [len(split) for split in (source.train, source.val, source.test)] == [5, 6, 6]
    assert 'not train, val or test: extra' in caplog.text and 'beside the class folders' in caplog.text


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, dict.fromkeys(('10', '2', '1', '01'), 3))
    assert open_source(f'folder:{tmp_path}').class_names == ('01', '1', '2', '10')


def test_a_class_in_two_forms_of_unicode(tmp_path: Path) -> None:
    """macOS writes accents of folders as letters of their own: they are one class with those of other systems."""
    name, mac = 'Ähre', unicodedata.normalize('NFD', 'Ähre')
    fakes.image_folder(tmp_path / 'train', {mac: 3, 'b': 3})
    fakes.image_folder(tmp_path / 'test', {name: 2, 'b': 1})
    source = open_source(f'folder:{tmp_path}')
    assert source.class_names == ('b', name) and decoded(source.train).shape[0] == 6
    assert source.test is not None and source.test.labels.tolist() == [0, 1, 1]
    rows = ''.join(f'train/{mac}/{i:03}.png,{label}\ntrain/b/{i:03}.png,b\n'
                   for i, label in enumerate((name, mac, name)))
    (tmp_path / 'table.csv').write_text(f'path,label\n{rows}', encoding='utf-8')
    assert open_source(f'csv:{tmp_path}/table.csv').class_names == ('b', name)
    fakes.image_folder(tmp_path / 'train', {name: 3})
    with pytest.raises(ZooError, match='the folder Ähre in two forms of Unicode: merge them'):
        open_source(f'folder:{tmp_path}/train')


def test_splits_inside_class_folders_are_refused(tmp_path: Path) -> None:
    for name in 'ab':
        fakes.image_folder(tmp_path / name, {'train': 3, 'test': 3})
    with pytest.raises(ZooError, match='train and test inside its class folders'):
        open_source(f'folder:{tmp_path}')
    fakes.image_folder(tmp_path / 'c', {'indoors': 3})        # a class of its own
    assert open_source(f'folder:{tmp_path}').class_names == ('a', 'b', 'c')


def test_tiny_imagenet_as_published(tmp_path: Path) -> None:
    """Labels of `val` come from its annotations; grey images become RGB; the unlabelled `test` is left alone."""
    fakes.tiny_imagenet(tmp_path)
    source = open_source(f'tiny_imagenet:{tmp_path}')
    assert sizes(source) == (12, 0, 6) and source.class_names == ('goldfish', 'bullfrog', 'slug')
    assert source.test is not None and source.test.labels.tolist() == [1, 0, 2, 1, 0, 2]
    grey = next(i for i in range(12) if 'grey' in source.train.name(i))
    pixels = decoded(source.train)[grey]
    assert pixels.shape == (3, 64, 64) and (pixels[0] == pixels[2]).all()
    assert source.info == DATASETS['timnet']


def test_tiny_imagenet_with_val_sorted_into_folders(tmp_path: Path) -> None:
    fakes.tiny_imagenet(tmp_path)
    lines = (tmp_path / 'val/val_annotations.txt').read_text().splitlines()
    for file, name in (line.split('\t')[:2] for line in lines):
        (tmp_path / 'val' / name).mkdir(exist_ok=True)
        (tmp_path / 'val/images' / file).rename(tmp_path / 'val' / name / file)
    (tmp_path / 'val/images').rmdir()
    (tmp_path / 'val/val_annotations.txt').unlink()
    source = open_source(f'tiny_imagenet:{tmp_path}')
    assert source.test is not None and source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize('harm, message', [
    (lambda root: (root / 'val').rename(root / 'other'), 'Tiny-ImageNet has train, val'),
    (lambda root: (root / 'val/images/001.JPEG').unlink(), '1 images .* are not in'),
    (lambda root: (root / 'val/val_annotations.txt').write_text('000.JPEG\tn77\n'), 'line 1'),
    (lambda root: (root / 'val/val_annotations.txt').write_text(''), 'line 1'),
])
def test_tiny_imagenet_in_a_wrong_layout(harm: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    fakes.tiny_imagenet(tmp_path)
    harm(tmp_path)
    with pytest.raises(ZooError, match=message):
        open_source(f'tiny_imagenet:{tmp_path}')


def test_cinic10(tmp_path: Path) -> None:
    names = DATASETS['c10'].label_names
    for i, split in enumerate(('train', 'valid', 'test'), start=1):
        fakes.image_folder(tmp_path / split, dict.fromkeys(names, i), 32)
    source = open_source(f'cinic10:{tmp_path}')
    assert sizes(source) == (10, 20, 30) and source.class_names == names
    (tmp_path / 'train' / 'cat').rename(tmp_path / 'train' / 'kitten')
    assert 'missing: cat; too many: kitten' in refusal(f'cinic10:{tmp_path}')
    (tmp_path / 'valid').rename(tmp_path / 'v')
    assert 'has test, train, v, CINIC-10 has train, valid, test' in refusal(f'cinic10:{tmp_path}')


@pytest.mark.parametrize('validation', ['val', 'valid', 'Validation'])
def test_folder_with_splits(validation: str, tmp_path: Path) -> None:
    for i, split in enumerate(('train', validation, 'test'), start=1):
        fakes.image_folder(tmp_path / split, {'b': i, 'a': 2 * i})
    (tmp_path / '.hidden').mkdir()
    (tmp_path / 'train' / '.hidden').mkdir()
    (tmp_path / 'train' / 'a' / '.000.png').write_bytes(b'resource fork')
    (tmp_path / 'train' / 'a' / 'notes.txt').write_text('not an image')
    source = open_source(f'folder:{tmp_path}', val_fraction=0.3)
    assert sizes(source) == (3, 6, 9) and source.class_names == ('a', 'b') and source.info is None
    assert source.train.labels.tolist() == [0, 0, 1] and source.name == tmp_path.name


def test_splits_beside_train_may_lack_a_class(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, {'train/a': 2, 'train/b': 2, 'train/c': 2, 'val/b': 1, 'test/a': 0, 'test/c': 2})
    source = open_source(f'folder:{tmp_path}')
    assert source.val is not None and source.test is not None and source.class_names == ('a', 'b', 'c')
    assert source.val.labels.tolist() == [1] and source.test.labels.tolist() == [2, 2]
    assert 'c/' in source.test.name(0)


def test_folder_with_images_deeper_down_and_other_endings(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path / 'a', {'2024/may': 5, 'more': 5}, ending='JPG')
    fakes.image_folder(tmp_path, {'b': 10}, ending='webp')
    assert sizes(open_source(f'folder:{tmp_path}')) == (16, 0, 4)


def test_one_folder_is_split_the_same_for_every_seed(tmp_path: Path) -> None:
    """A run with another seed must not train on what this one is tested on."""
    fakes.image_folder(tmp_path, {'a': 20, 'b': 10, 'train': 5, 'lone': 1})
    first, second = open_source(f'folder:{tmp_path}'), open_source(f'folder:{tmp_path}', seed=1)
    assert first.test is not None and second.test is not None
    assert first.test.labels.bincount(minlength=4).tolist() == [4, 2, 0, 1]  # of a, b, lone, train
    assert [first.test.name(i) for i in range(7)] == [second.test.name(i) for i in range(7)]
    names = {split.name(i) for split in (first.train, first.test) for i in range(len(split))}
    assert len(names) == 36 == len(first.train) + len(first.test)


def test_images_for_testing_alone(tmp_path: Path) -> None:
    """Any split and any of the classes will do; class folders alone are all for testing where asked for."""
    fakes.image_folder(tmp_path / 'few', {'b': 1, 'a': 1})
    fakes.image_folder(tmp_path / 'one', {'a': 3})
    fakes.image_folder(tmp_path / 'test', {'test/a': 3})
    fakes.image_folder(tmp_path / 'val', {'val/a': 2, 'val/c': 1})
    found = [open_source(f'folder:{tmp_path / name}', training=False, whole=True)
             for name in ('few', 'one', 'test', 'val')]
    assert [*map(sizes, found)] == [(0, 0, 2), (0, 0, 3), (0, 0, 3), (0, 3, 0)]
    assert [source.class_names for source in found] == [('a', 'b'), ('a',), ('a',), ('a', 'c')]
    assert sizes(open_source(f'folder:{tmp_path / "one"}', training=False)) == (2, 0, 1)
    table = tmp_path / 'a.csv'
    for head, rows, expected in (('path,label', '{},x', (0, 0, 3)), ('path,label,split', '{},x,test', (0, 0, 3))):
        table.write_text('\n'.join([head, *(rows.format(f'one/a/{i:03}.png') for i in range(3))]))
        assert sizes(open_source(table, training=False, whole=True)) == expected
    assert 'none of train' in refusal(f'csv:{table}')
    assert 'has val and no train' in refusal(f'folder:{tmp_path / "val"}')


def test_images_of_two_splits_are_found(tmp_path: Path) -> None:
    """Copies and links of files, and equal arrays; by their places in the split."""
    fakes.image_folder(tmp_path / 'train', {'a': 2, 'b': 2}, 6)
    fakes.image_folder(tmp_path / 'test', {'a': 3, 'b': 2}, 8)
    for i, put in enumerate((shutil.copy, os.symlink, os.link)):
        put(tmp_path / 'test' / 'a' / f'{i:03}.png', tmp_path / 'train' / 'b' / f'more{i}.png')
    source = open_source(f'folder:{tmp_path}')
    assert source.test and repeated(source.test, digests_of(source.train)) == [0, 1, 2]

    images, labels = np.arange(8 * 48, dtype=np.uint16).reshape(8, 4, 4, 3), np.arange(8) % 2
    source = open_source({'train': (images[:6], labels[:6]), 'test': (images[[7, 3, 5]], labels[:3])})
    assert source.test and repeated(source.test, digests_of(source.train)) == [1, 2]
    assert repeated(source.test.select(torch.tensor([1])), digests_of(source.train.select(torch.tensor([0, 3])))) == [0]


@pytest.mark.parametrize('layout, message', [
    ({}, 'has no folders: expected a folder for each class'),
    ({'only': 3}, 'has only: expected a folder for each class, two classes or more'),
    ({'train/a': 2, 'train/b': 2, 'test/a': 1, 'test/c': 1}, r'test has other .* \(too many: c\): expected those of'),
    ({'train/a': 2, 'train/b': 2, 'val/a': 0}, r'val has no images in folders of the classes of train'),
    ({'train/a': 2, 'train/b': 2, 'val/a': 1, 'valid/a': 1}, 'val, valid: expected one of them'),
    ({'train/a': 2, 'train/b': 0}, 'no images in b'),
    ({'test/a': 1, 'test/b': 1, 'other/a': 2, 'x/a': 2}, 'other, test, x and no train'),
    ({'train': 3, 'test': 3}, 'train has no folders and 3 loose images'),
    ({'pets/cat': 2, 'pets/dog': 2}, 'give folder:.*pets'),
    ({'a': 1, 'b': 1}, 'too few to hold out a fifth'),
])
def test_folder_in_a_wrong_layout(layout: dict[str, int], message: str, tmp_path: Path) -> None:
    fakes.image_folder(tmp_path, layout)
    with pytest.raises(ZooError, match=message):
        open_source(f'folder:{tmp_path}')
    assert '\n' not in refusal(f'folder:{tmp_path}')


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    assert 'There is no folder' in refusal(f'folder:{tmp_path / "none"}')
