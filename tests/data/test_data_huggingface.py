"""Datasets of the Hub from parquet files, and the line that each unfit one gets."""
from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from data_cases import decoded, refusal, sizes
from PIL import Image

from tinyvit_zoo.data.hub import hub_parts
from tinyvit_zoo.data.images import decode
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.errors import ZooError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a data set as parquet files, as the Hub holds them, and returns its name."""
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')

    def write(names: list[str] | None = None, column: str = 'label', several: bool = False, **splits: list[Any]) -> str:
        first = next(iter(splits.values()))[0]
        text = isinstance(first[0] if several else first, str)
        kind = datasets.ClassLabel(names=names) if names else datasets.Value('string' if text else 'int64')
        kind = datasets.Sequence(kind) if several else kind
        features = datasets.Features({'img': datasets.Image(), column: kind, 'id': datasets.Value('int64')})
        (tmp_path / 'set').mkdir()
        for split, labels in splits.items():
            rows = {'img': [Image.fromarray(fakes.pixels(9, 7, 3)) for _ in labels], column: labels,
                    'id': list(range(len(labels)))}
            datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / 'set' / f'{split}-0.parquet')
        return str(tmp_path / 'set')

    return write


def test_hub(hub: Callable[..., str]) -> None:
    name = hub(['x', 'y'], train=[0, 1, 1], validation=[0], test=[1, 0])
    source = open_source(f'hf:{name}')
    assert sizes(source) == (3, 1, 2) and source.class_names == ('x', 'y')
    assert source.test is not None and source.test.labels.tolist() == [1, 0]
    assert decoded(source.train).shape == (3, 3, 9, 7)
    assert source.train.name(2) == f'{name} train[2]'


def test_a_configuration_of_several(hub: Callable[..., str]) -> None:
    name = hub(['x', 'y'], train=[0, 1, 1], test=[1])
    Path(name, 'README.md').write_text('---\nconfigs:\n' + ''.join(
        f'- config_name: {key}\n  data_files:\n  - split: train\n    path: {key}-0.parquet\n'
        for key in ('train', 'test')) + '---\n')
    assert len(open_source(f'hf:{name}:train').train) == 3
    for wrong in ('', ':other'):
        with pytest.raises(ZooError, match=r"cannot be loaded \(.*'train', 'test'"):
            open_source(f'hf:{name}{wrong}')


def test_retries_of_an_unreachable_hub_are_not_printed(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def unreachable(*args: Any) -> None:
        logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s')
        raise ConnectionError('no network')

    monkeypatch.setattr(pytest.importorskip('datasets'), 'load_dataset', unreachable)
    with pytest.raises(ZooError, match='no network'):
        open_source('hf:someone/something')
    assert not caplog.records


def test_a_damaged_file_is_one_line_with_its_cause(
        hub: Callable[..., str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    name = hub(['x', 'y'], train=[0, 1, 1] * 20)
    path = next(Path(name).glob('*.parquet'))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ZooError, match='cannot be loaded') as error:
        open_source(f'hf:{name}')
    assert 'error occurred' not in str(error.value) and not caplog.records and 'rror' not in capfd.readouterr().err


def test_hub_with_plain_numbers_and_withheld_test_labels(hub: Callable[..., str]) -> None:
    source = open_source(f'hf:{hub(column="fine_label", train=[0, 1, 2], test=[-1, -1])}')
    assert sizes(source) == (3, 0, 0) and source.class_names == ('0', '1', '2')


def test_hub_with_texts_as_labels(hub: Callable[..., str]) -> None:
    source = open_source(f'hf:{hub(train=["dog", "cat", "dog"], test=["cat", "dog"])}')
    assert source.class_names == ('cat', 'dog') and source.train.labels.tolist() == [1, 0, 1]
    assert source.test is not None and source.test.labels.tolist() == [0, 1]


def test_hub_with_several_labels_an_image(hub: Callable[..., str]) -> None:
    name = hub(['x', 'y', 'z'], several=True, train=[[0, 2], [], [1]], validation=[[1, 0, 1]], test=[[], []])
    source = open_source(f'hf:{name}')
    assert sizes(source) == (3, 1, 0) and source.class_names == ('x', 'y', 'z') and source.train.multi_label
    assert source.train.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert source.val is not None and source.val.labels.tolist() == [[1, 1, 0]]


def test_hub_with_lists_of_texts_as_labels(hub: Callable[..., str]) -> None:
    name = hub(column='labels', several=True, train=[['dog', 'cat'], [], ['dog', '']], test=[['cat'], []])
    source = open_source(f'hf:{name}')
    assert source.class_names == ('cat', 'dog') and source.train.labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert source.test is not None and source.test.labels.tolist() == [[1, 0], [0, 0]]


def test_hub_images_of_16_bits_keep_them(hub: Callable[..., str]) -> None:
    datasets = pytest.importorskip('datasets')
    values = np.full((4, 4), 1030, np.uint16)
    rows = datasets.Dataset.from_dict({'image': [Image.fromarray(values), Image.fromarray(values + 1)] * 2,
                                       'label': [0, 1] * 2}).cast_column('image', datasets.Image())
    source = open_source({'train': rows, 'test': rows})
    assert decode(source.train.images, (4, 4), 3).unique().tolist() == [1030, 1031]
    assert source.test is not None and source.test.images.deep


@pytest.mark.parametrize('training', [True, False])
def test_what_is_no_dataset_of_the_library(training: bool) -> None:
    datasets = pytest.importorskip('datasets')
    rows = datasets.Dataset.from_dict({'image': [Image.new('L', (4, 4))] * 4, 'label': [0, 1] * 2}).cast_column(
        'image', datasets.Image())
    for data in ({'train': rows, 'test': (fakes.pixels(4, 4, 4), [0, 1] * 2)}, rows.to_iterable_dataset()):
        with pytest.raises(ZooError, match=r'images of the dataset .* are \w+: expected a datasets.Dataset'):
            open_source(data, training=training)
    only = datasets.DatasetDict(test=rows.select([0, 2]))
    if not training:
        assert sizes(open_source(only, training=False)) == (0, 0, 2)
    else:
        with pytest.raises(ZooError, match='has the splits test: expected train'):
            open_source(only)


@pytest.mark.parametrize('options, message', [
    (dict(names=['x', 'y'], several=True, train=[[0], [1]], test=[[0], None]), 'test images without a label'),
    (dict(names=['x', 'y'], several=True, train=[[0], [0]]), r'of 1 out of 2 classes \(none of y\)'),
    (dict(several=True, train=[[0], [1]]), 'has the columns img, label, id'),
    (dict(names=['x', 'y'], test=[0, 1]), 'has the splits test: expected train'),
    (dict(names=['x', 'y'], column='mood', train=[0, 0]), 'of 1 out of 2 classes'),
    (dict(column='mood', train=[0, 1]), 'has the columns img, mood, id'),
    (dict(train=[0, 1], test=[0, 3]), 'labels from 0 to 3: expected 0 to 1'),
    (dict(train=[0, None]), 'images without a label'),
    (dict(train=[-1, -1]), 'have no labels'),
    (dict(train=['a', 'b'], test=['b', 'c']), "test labels of the dataset .* have the class 'c': expected 'a', 'b'"),
    (dict(train=['a', 'b', None]), 'have the class None: expected'),
    (dict(several=True, train=[['a'], ['b'], None]), 'images without a label'),
    (dict(several=True, train=[['a'], ['b']], test=[['c']]), "have the class 'c': expected 'a', 'b'"),
    (dict(column='mood', train=['a', 'b']), 'has the columns img, mood, id'),
])
def test_hub_sets_that_do_not_fit(options: dict[str, Any], message: str, hub: Callable[..., str]) -> None:
    with pytest.raises(ZooError, match=message):
        open_source(f'hf:{hub(**options)}')


def test_hub_set_with_numbers_that_int64_does_not_hold(hub: Callable[..., str]) -> None:
    table = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    path = Path(hub(train=[0, 1, 1])) / 'train-0.parquet'
    rows = parquet.read_table(path).replace_schema_metadata(None)
    rows = rows.set_column(1, 'label', table.array([0, 1, 2 ** 63], table.uint64()))
    parquet.write_table(rows, path)
    datasets = pytest.importorskip('datasets')
    found = datasets.load_dataset(str(path.parent)).cast_column('img', datasets.Image())
    with pytest.raises(ZooError, match=r'has train labels beyond 2 \*\* 63'):
        hub_parts('numbers', found)


def test_hub_set_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip('datasets')
    assert 'cannot be loaded' in refusal(f'hf:{tmp_path / "none"}')
