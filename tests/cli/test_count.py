"""`tinyvit-zoo count` prints the figures of the library."""
from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable

import pytest
import timm

from tinyvit_zoo.measure.counting import count, peak_memory

Run = Callable[..., str]


def test_count_in_numbers(run: Run) -> None:
    vit, cct = json.loads(run('count', 'sl_vit', 'cct_2_3x2', '--num-classes', '7', '--img-size', '48', '32', '--json'))
    assert [vit['name'], cct['name']] == ['sl_vit', 'cct_2_3x2'] and vit['input_size'] == [3, 48, 32]
    for row in (vit, cct):
        model = timm.create_model(row['name'], num_classes=7, img_size=(48, 32), device='meta')
        assert row['params'] == sum(p.numel() for p in model.parameters()) and row['macs'] == count(model).macs
        assert row['peak_memory'] == peak_memory(model)
        assert row['peak_training_memory'] == peak_memory(model, train=True) > row['peak_memory']
        assert row['paper_macs'] is None


def test_count_as_a_table(run: Run) -> None:
    pytest.importorskip('fvcore')
    lines = run('count', 'cct_2_3x*', 'resnet18', '--parts', '--fvcore', '--img-size', '32').splitlines()
    cells = dict(zip(lines[0].replace('MiB, training', 'training').replace('M MACs', 'MACs').split(),
                     lines[1].replace(' [1]', '[1]').split(), strict=False))
    assert cells['parameters'] == '283,723' and cells['MACs'] == '35.34' and cells['paper'] == '33[1]'
    assert '  tokenizer' in lines[3] and '75,456' in lines[3]
    assert lines[1].split()[-3:] == ['35.55', '0.20', '2.10']  # all of fvcore's, norms, attention
    assert any(line.startswith('resnet18') for line in lines) and lines[-1].startswith('[1] The paper leaves out')


def test_a_batch_costs_as_many_times(run: Run) -> None:
    one, = json.loads(run('count', 'mae_vit_c10', '--json'))
    five, = json.loads(run('count', 'mae_vit_c10', '--json', '--batch-size', '5'))
    assert five['macs'] == 5 * one['macs'] and five['activations'] == 5 * one['activations']
    assert five['params'] == one['params'] and five['peak_memory'] > one['peak_memory']


def test_a_papers_count_is_for_its_size_and_every_batch(run: Run) -> None:
    one, eight = (json.loads(run('count', 'cct_7_3x1', '--batch-size', n, '--json'))[0] for n in ('1', '8'))
    assert eight['paper_macs'] == 8 * one['paper_macs'] == 8 * 947_000_000
    assert json.loads(run('count', 'cct_7_3x1', '--img-size', '32', '64', '--json'))[0]['paper_macs'] is None


def test_csv_has_what_json_has(run: Run) -> None:
    argv = ('count', 'sl_vit', 'cct_2_3x2', '--parts')
    rows = list(csv.DictReader(io.StringIO(run(*argv, '--csv'))))
    for expected, row in zip(json.loads(run(*argv, '--json')), rows, strict=True):
        assert row['name'] == expected['name'] and int(row['params']) == expected['params'] and 'parts' not in row
        assert int(row['macs']) == expected['macs'] and row['input_size'] == ' '.join(map(str, expected['input_size']))


def test_count_refuses_in_one_line(refused: Run) -> None:
    assert 'Did you mean cct_7_3x1' in refused('count', 'cct_7_3x1x')
    assert "matches 'xct_*'" in refused('count', 'xct_*')
    assert 'this model needs at least 8 x 8' in refused('count', 'sl_swin', '--img-size', '4')
    assert 'num_classes is -1' in refused('count', 'sl_vit', '--num-classes', '-1')
    assert 'one side, or height and width' in refused('count', 'sl_vit', '--img-size', '8', '8', '8')
    assert 'no weights' in refused('count', 'cct_7_3x1.nothing')
    assert 'nest_tiny cannot be built like this: `patch_size`' in refused('count', 'nest_tiny', '--img-size', '30')
    assert 'VisionTransformer cannot take 1 x 3 x 8 x 8' in refused('count', 'vit_tiny_patch16_224', '--img-size', '8')


def test_a_missing_extra_is_named(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'fvcore.nn', None)
    assert "pip install 'tinyvit-zoo[analysis]'" in refused('count', 'cct_2_3x2', '--fvcore')
