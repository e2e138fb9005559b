"""`tinyvit-zoo list` shows what timm and the catalogue have."""
from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import timm
from cli_cases import patch_figures
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

import tinyvit_zoo
from tinyvit_zoo.weights import catalogue

Run = Callable[..., str]


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


@pytest.mark.parametrize(('argv', 'said'), [
    (['cctt'], 'Did you mean cct'), (['*.nothing'], "'*.nothing'"), (['cct_7_3x1', '--no-weights'], 'without weights'),
])
def test_nothing_to_list_is_one_line(refused: Run, argv: list[str], said: str) -> None:
    assert said in refused('list', *argv)
