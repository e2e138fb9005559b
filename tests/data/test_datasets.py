"""The table of datasets: every row works in every place that asks it, and a row from outside as well."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli._options import image_source
from tinyvit_zoo.data.datasets import DATASETS, Dataset, Torchvision, spec_of
from tinyvit_zoo.data.images import ArrayImages
from tinyvit_zoo.data.sources import open_source, syntax
from tinyvit_zoo.data.splits import Parts, Split
from tinyvit_zoo.publish import cards, hub
from tinyvit_zoo.recipes import Recipe
from tinyvit_zoo.training.own import without_mirroring
from tinyvit_zoo.weights import catalogue

each = pytest.mark.parametrize('key', list(DATASETS))


@each
def test_a_row_is_complete(key: str) -> None:
    row = DATASETS[key]
    assert row.key == key and row.title.lower() in row.about.lower()
    assert len(row.label_names) == (0 if key == 'in1k' else row.num_classes) == len(set(row.label_names))
    assert all(0 < value < 1 for value in (*row.mean, *row.std))
    assert row.mirrored == (row.label_names != tuple('0123456789'))


@each
def test_a_row_serves_recipes_and_the_command_line(key: str) -> None:
    row, recipe = DATASETS[key], Recipe(name=f'cct_2_3x2.{key}', about='', dataset=key)
    spec = spec_of(key)
    assert recipe.command(spec) == f'tinyvit-zoo train {recipe.name} --data {spec} --output DIR'
    assert row.source in syntax() and spec == syntax()[row.source]
    if key == 'digits':
        assert image_source(None, recipe) == 'digits'
    else:
        with pytest.raises(ZooError, match=f'--data is missing: give e.g. {spec}'):
            image_source(None, recipe)
    assert without_mirroring(recipe, spec).flip == (0.5 if row.mirrored else 0)


@each
def test_a_row_serves_cards_and_the_hub(key: str) -> None:
    row, weight = DATASETS[key], replace(catalogue()['cct_2_3x2.digits'], dataset=key)
    model = SimpleNamespace(pretrained_cfg={'license': 'apache-2.0', 'paper_ids': 'arXiv:2104.05704'})
    assert f'| training data | {row.about} |' in cards.card(weight)
    matter = hub._front_matter(weight, model, 'org/name', [])
    assert f'name: {row.title}\n' in matter and f'type: {row.hub_id or key}\n' in matter
    assert ('datasets:' in matter) == bool(row.hub_id)


def test_openers_are_there() -> None:
    """Every row but ImageNet's has one; torchvision has the classes and the arguments."""
    import inspect

    from torchvision import datasets

    for row in DATASETS.values():
        assert (row.opener is None) == (row.key == 'in1k')
        if isinstance(row.opener, Torchvision):
            known = inspect.signature(getattr(datasets, row.opener.class_name)).parameters
            assert {*row.opener.train, *row.opener.test, *(row.opener.val or {})} <= {*known}


def test_a_row_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def open_stripes(place: str) -> Parts:
        """Vertical or horizontal."""
        assert place == str(tmp_path)
        columns = torch.arange(8) % 2 * 255
        pixels = torch.stack([columns.expand(8, 8), columns[:, None].expand(8, 8)]).to(torch.uint8)
        split = Split(ArrayImages(pixels, 'stripes'), torch.arange(2))
        return Parts(split, None, split)

    row = Dataset('stripes', 'Stripes', 2, (0.5,) * 3, (0.5,) * 3, ('vertical', 'horizontal'), 'stripes', open_stripes)
    monkeypatch.setitem(DATASETS, 'stripes', row)
    source = open_source(f'stripes:{tmp_path}')
    assert source.info is row and source.class_names == row.label_names and len(source.train) == 2
    assert spec_of('stripes') == 'stripes:PATH' and spec_of('of my own') == 'folder:PATH'
    with pytest.raises(ZooError, match='expected stripes:PATH'):
        open_source('stripes')
    with pytest.raises(ZooError, match='cannot be downloaded here'):
        open_source(f'stripes:{tmp_path}', download=True)
