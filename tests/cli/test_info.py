"""`tinyvit-zoo info` says what timm uses and what was measured, and nothing else."""
from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cli_cases import patch_figures, without_weights
from timm.data import resolve_data_config
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from tinyvit_zoo.weights import catalogue

Run = Callable[..., str]


def lines_of(text: str) -> dict[str, str]:
    """Title and text of the lines that `info` prints."""
    return {line[:14].strip(): line[14:] for line in text.splitlines() if line[:14].strip()}


def test_published_figures_are_never_shown_as_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = next(iter(catalogue().values()))
    patch_figures(monkeypatch, weight, published={'top1': 91.25, 'source': 'a paper'}, measured=None)
    lines = lines_of(run('info', weight.name))
    assert lines['published'] == '91.25 % top-1 (a paper)'
    assert 'measured' not in lines

    ours = {'top1': 90.5, 'on': 'the test set', 'date': '2026-01-31', 'command': 'tinyvit-zoo eval'}
    patch_figures(monkeypatch, weight, published=None, measured=ours)
    lines = lines_of(run('info', weight.name))
    assert 'published' not in lines
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
    assert json.loads(run('info', 'cct_2_3x2', '--json'))['label_names'][:2] == ['airplane', 'automobile']
    assert json.loads(run('info', 'cct_14_7x2.shi_in1k', '--json'))['label_names'][0].startswith('tench')


def test_info_of_a_model_without_weights(run: Run) -> None:
    assert lines_of(run('info', without_weights()))['weights'] == 'none yet'
    assert json.loads(run('info', without_weights(), '--json'))['weights'] is None


def test_info_wraps_long_notes_and_leaves_addresses_whole(run: Run) -> None:
    for weight in sorted(catalogue().values(), key=lambda weight: len(weight.note + weight.source))[-6:]:
        text = run('info', weight.name)
        assert weight.source in text
        assert weight.note in ' '.join(text.split())
        assert all(len(line) <= 120 or weight.source in line for line in text.splitlines())


@pytest.mark.parametrize(('name', 'said'), [
    ('cct_7_3x9', 'Did you mean cct_7_3x'), ('cct_7_3x1.shi_c10_300', 'Did you mean shi_c10_300e'),
    ('resnet50', "'resnet50'"), ('hf-hub:someone/cct', 'hf-hub:someone/cct does not fit'),
])
def test_an_unknown_name_is_one_line(refused: Run, name: str, said: str) -> None:
    assert said in refused('info', name)
