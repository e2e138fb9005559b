"""Arrays, tensors and datasets as data."""
from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tinyvit_zoo import ZooError
from tinyvit_zoo.data.images import decode
from tinyvit_zoo.data.objects import DatasetImages, as_image, as_pixels
from tinyvit_zoo.data.sources import open_source

DRAW = np.random.RandomState(0)
COLOUR = DRAW.randint(0, 256, (6, 5, 7, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize('given', [
    COLOUR, torch.from_numpy(COLOUR), COLOUR.transpose(0, 3, 1, 2), COLOUR.astype(np.float64) / 255,
    torch.from_numpy(COLOUR).permute(0, 3, 1, 2).float() / 255], ids=['array', 'tensor', 'first', 'double', 'float'])
def test_every_form_of_the_same_pixels(given: Any) -> None:
    assert np.array_equal(as_pixels(given, 'x').numpy(), COLOUR)
    source = open_source((given, LABELS))
    assert np.array_equal(decode(source.train.images, (5, 7), 3).numpy(), COLOUR.transpose(0, 3, 1, 2))
    assert source.class_names == ('0', '1', '2') and source.test is None
    assert np.array_equal(np.asarray(as_image(given[2])), COLOUR[2])


def test_floats_of_other_channels_keep_16_bits() -> None:
    deep = DRAW.randint(0, 65536, (6, 5, 7, 5)).astype(np.uint16)
    for floats in (deep / 65535, (deep / 65535).transpose(0, 3, 1, 2)):
        assert np.array_equal(as_pixels(floats, 'x').numpy(), deep)


def test_lists_of_images_and_of_paths(tmp_path: Path) -> None:
    """As if each was read alone."""
    images = [Image.fromarray(x) for x in COLOUR]
    palettes = [image.quantize(16) for image in images]
    for i, image in enumerate(images):
        image.save(tmp_path / f'{i}.png')
    paths = sorted(tmp_path.iterdir())
    for given in (images, paths, [*map(str, paths)], np.array([*map(str, paths)])):
        assert np.array_equal(decode(open_source((given, LABELS)).train.images, (5, 7), 3).numpy().transpose(
            0, 2, 3, 1), COLOUR)
    assert np.array_equal(open_source((palettes, LABELS)).train.read(3), palettes[3].convert('RGB'))
    with pytest.raises(ZooError, match='6 train images but 5 labels'):
        open_source((images, LABELS[:5]))
    several = [COLOUR[0], COLOUR[1, :4], torch.from_numpy(COLOUR[2])]
    split = open_source((several, [0, 1, 1])).train
    assert [split.read(i).size for i in range(3)] == [(7, 5), (7, 4), (7, 5)]


def test_grey_and_one_channel() -> None:
    grey = COLOUR[..., 0]
    for form in (grey, grey[..., None], grey[:, None]):
        assert np.array_equal(as_pixels(form, 'x').numpy(), grey)


def test_a_folder_or_file_as_a_path(tmp_path: Path) -> None:
    for name in 'ab':
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(COLOUR[i]).save(tmp_path / 'photos' / name / f'{i}.png')
    np.savez(tmp_path / 'x.npz', train_images=COLOUR, train_labels=LABELS)
    assert open_source(tmp_path / 'photos').class_names == ('a', 'b')
    assert len(open_source(tmp_path / 'x.npz').train) == 6


def test_torchvision_and_subsets(tmp_path: Path) -> None:
    torchvision = pytest.importorskip('torchvision')
    fake = torchvision.datasets.FakeData(12, (3, 8, 8), 3, random_offset=1)
    labels = [int(label) for _, label in fake]
    fake.classes = ['x', 'y', 'z']
    source = open_source({'train': fake, 'test': torch.utils.data.Subset(fake, [3, 4])})
    assert source.train.labels.tolist() == labels and source.class_names == ('x', 'y', 'z')
    assert source.test is not None and source.test.labels.tolist() == labels[3:5]
    assert np.array_equal(np.asarray(source.test.read(1)), np.asarray(fake[4][0]))


class Named(torch.utils.data.Dataset):
    """Images whose classes have names, and labels that were read already, as torchvision's have."""
    target_transform: Any = None

    def __init__(self, classes: str, labels: Any = LABELS) -> None:
        self.classes, self.targets, self.numbers = [*classes], [*labels], labels

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        label = int(self.numbers[i])
        return COLOUR[i], self.target_transform(label) if self.target_transform else label


def test_labels_are_those_of_the_items() -> None:
    changed, others = Named('abc'), Named('abc')
    changed.target_transform = {0: 1, 1: 0, 2: 0}.__getitem__
    for dataset in (changed, torch.utils.data.Subset(changed, range(6))):
        source = open_source(dataset)
        assert source.train.labels.tolist() == [1, 0, 0, 1, 0, 0] and source.class_names == ('0', '1')
    others.targets = [*LABELS[::-1]]
    assert open_source(others).train.labels.tolist() == LABELS.tolist()


def test_classes_of_all_datasets_are_matched_by_name() -> None:
    source = open_source({'train': Named('abc'), 'test': Named('ca', [0, 1, 0])})
    assert source.test is not None and source.test.labels.tolist() == [2, 0, 2]
    assert source.class_names == ('a', 'b', 'c')
    part = torch.utils.data.Subset(Named('abc'), [2, 3, 4])
    named = open_source({'train': Named('abc'), 'val': part, 'class_names': ['x', 'y', 'z']})
    assert named.class_names == ('x', 'y', 'z') and named.val is not None and named.val.labels.tolist() == [2, 0, 1]
    assert open_source({'train': torch.utils.data.Subset(Named('abc'), range(6))}).class_names == ('a', 'b', 'c')
    with pytest.raises(ZooError, match="test images have the class 'd': expected 'a', 'b', 'c'"):
        open_source({'train': Named('abc'), 'test': Named('abd')})


@pytest.mark.parametrize('pack', [
    lambda x, y: (x, y), lambda x, y: (x, np.array(y)), lambda x, y: [*zip(x, y, strict=True)]], ids='lap')
def test_class_names_as_labels(pack: Callable[[Any, list[str]], Any]) -> None:
    """They are numbered in sorted order, in all splits alike; numbers by their value."""
    source = open_source({'train': pack(COLOUR, [*'bcabca']), 'test': pack(COLOUR[:3], ['c', 'b', 'b'])})
    assert source.class_names == ('a', 'b', 'c') and source.train.labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert source.test is not None and source.test.labels.tolist() == [2, 1, 1]
    assert open_source(pack(COLOUR, ['10', '9', '2'] * 2)).class_names == ('2', '9', '10')
    named = {'train': pack(COLOUR, [*'bcabca']), 'class_names': ['c', 'b', 'a']}
    assert open_source(named).train.labels.tolist() == [1, 0, 2, 1, 0, 2]


@pytest.mark.parametrize('pack', [
    lambda x, y: (x, y), lambda x, y: (x, np.array(y, object)), lambda x, y: [*zip(x, y, strict=True)]], ids='lap')
def test_lists_of_class_names_as_labels(pack: Callable[[Any, list[Any]], Any]) -> None:
    source = open_source({'train': pack(COLOUR, [['b', 'a'], ['c'], [], ('a',), {'b', 'c'}, ['c']]),
                          'test': pack(COLOUR[:3], [['c', 'c'], [], ['a']])})
    assert source.class_names == ('a', 'b', 'c') and source.train.multi_label
    assert source.train.labels.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert source.test is not None and source.test.labels.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    named = {'train': pack(COLOUR, [['b', 'a'], ['b'], []] * 2), 'class_names': ['b', 'a']}
    assert open_source(named).train.labels.tolist() == [[1, 1], [1, 0], [0, 0]] * 2


def test_hugging_face_datasets() -> None:
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['no', 'yes']))
    rows = datasets.Dataset.from_dict(
        {'image': [Image.fromarray(x) for x in COLOUR], 'label': [0, 1] * 3}, features=features)
    alone = open_source(rows)
    assert alone.class_names == ('no', 'yes') and alone.val is None
    for validation in (rows, rows.with_format('torch')):
        both = open_source(datasets.DatasetDict(train=rows, validation=validation))
        assert open_source({'train': rows, 'val': validation}).class_names == both.class_names
        assert both.val is not None and both.val.labels.tolist() == both.train.labels.tolist() == [0, 1] * 3
    others = rows.cast_column('label', datasets.ClassLabel(names=['yes', 'no']))
    for other in (others, rows.rename_column('label', 'y'), rows.cast_column('label', datasets.Value('int64'))):
        with pytest.raises(ZooError, match='test images of the dataset Dataset have other columns or classes'):
            open_source({'train': rows, 'test': other})
    assert np.array_equal(np.asarray(both.train.read(2)), COLOUR[2])


@pytest.mark.parametrize('data, message', [
    ((COLOUR, LABELS[:4]), '6 train images but 4 labels'), ((COLOUR.astype(float), LABELS), 'expected 0 to 1'),
    ((COLOUR.astype(np.int64), LABELS), 'expected uint8'), ((COLOUR[:0], LABELS[:0]), 'no pixels'),
    ((COLOUR, [*'abcab', None]), "number 0 is 'a'"), ((COLOUR, [0, 1, 2, 0, 1, None]), 'number 5 is None'),
    ((COLOUR, [*'abcab', 3.5]), 'labels are'), ((COLOUR, [0, 1, 2, float('nan'), 1, 2]), 'number 3 is nan'),
    ((COLOUR, LABELS - 1), 'number 0 is -1'), (5, 'a int: expected'),
    ((COLOUR, LABELS * 10 ** 12), 'labels are'), ((np.zeros((6, 20, 20, 20), np.uint8), LABELS), 'expected uint8'),
    ((COLOUR, LABELS * 5), 'a label 10'), ({'test': (COLOUR, LABELS)}, 'expected train'),
    ({'train': (COLOUR, LABELS), 'tset': 1}, "the keys 'train', 'tset'"), ((COLOUR, [None] * 6), 'labels are'),
    ({'train': (COLOUR, [*'abcabc']), 'test': (COLOUR, [*'abcabd'])}, "have the class 'd': expected 'a', 'b', 'c'"),
    ([Image.fromarray(x) for x in COLOUR], 'not pairs'), ([{'image': x, 'label': 1} for x in COLOUR], 'not pairs'),
    ((COLOUR * np.nan, LABELS), 'expected 0 to 1'),
    ({'train': (COLOUR, LABELS), 'class_names': 'ab'}, 'expected'),
    ({'train': (COLOUR, LABELS), 'class_names': ['a', 'b', 'a']}, 'no two alike'),
    ({'train': None}, 'expected train, and optionally'),
    (([[1], [1, 2]], [0, 1]), 'not an array'), ((torch.zeros(6, 3, 8, 8, device='meta'), LABELS), 'not an array'),
    ((torch.from_numpy(COLOUR).to_sparse(), LABELS), 'sparse or nested: use to_dense'),
    ((COLOUR, [torch.tensor(1), 0, 1, 0, 1, 0.5]), 'labels are'), ((COLOUR, np.array(None)), 'labels are'),
    ((COLOUR, torch.zeros(6, device='meta')), 'not numbers'),
    ((COLOUR, [['a', 'b'], ['c'], ['a'], ['b'], ['c'], 'a']), 'not numbers'),
    ((COLOUR, [[]] * 6), 'no label, and so no classes'),
    ({'train': (COLOUR, [['a'], ['b']] * 3), 'test': (COLOUR, [['a'], ['d']] * 3)}, "have the class 'd': expected 'a'"),
    (torch.utils.data.TensorDataset(torch.zeros(0, 3), torch.zeros(0)), 'are empty')])
def test_what_cannot_be_data_is_one_line(data: Any, message: str) -> None:
    with pytest.raises(ZooError, match=message) as error:
        open_source(data)
    assert r'\n' not in str(error.value)


class Odd(torch.utils.data.Dataset):
    """Raises at item 3: at once, or when it is read again."""
    classes = 5

    def __init__(self, later: bool) -> None:
        self.later, self.seen = later, 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        self.seen += 1
        if i == 3 and (self.seen > 7 or not self.later):
            raise KeyError('no such\nrow')
        return COLOUR[i], i % 2


@pytest.mark.parametrize('later, message', [
    (False, 'Item 3 of the train images cannot be read (it raises KeyErr'), (True, 'train[3] (it raises KeyErr')])
def test_what_a_dataset_raises_is_named_and_kept(later: bool, message: str) -> None:
    with pytest.raises(ZooError) as error:
        decode(open_source(Odd(later)).train.images, (5, 7), 3)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert isinstance(error.value.__cause__, KeyError)


def test_digests_are_those_of_the_same_arrays() -> None:
    """By which a resumed run notices other images, and leaked test images are named."""
    for pixels in (COLOUR, COLOUR[..., 0], np.repeat(COLOUR, 2, 3).astype(np.uint16)):
        ours, theirs = DatasetImages([(image, 0) for image in pixels], 'x'), open_source((pixels, LABELS)).train.images
        assert np.array_equal(ours.digests(), theirs.digests()) and len(np.unique(theirs.digests(), axis=0)) == 6
    odd = Odd(later=False)
    images, odd.seen = DatasetImages(odd, 'x'), -1000
    with pytest.raises(ZooError, match=r'1 of 6 images .* x\[3\]'):
        images.digests()


def test_ctrl_c_waits_for_the_image_that_is_read_alone() -> None:
    """Not for the 64 of its thread."""
    read: list[int] = []

    class Slow(Odd):
        def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
            read.append(i)
            if len(read) == 10:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(.02)
            return COLOUR[0], 0
    images = DatasetImages(Slow(False), 'x')
    read.clear()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)   # background processes ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            decode(images, (5, 7), 3, torch.zeros(640, dtype=torch.int64))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(read) < 64
