"""`tinyvit-zoo analyze`: the files it writes, and a mistake is one line."""
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from tinyvit_zoo.cli.main import main
from tinyvit_zoo.weights import save_weights


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """`NAME=FILE` of a model for digits."""
    model = timm.create_model('cct_2_3x2', img_size=16)
    cfg = '{"num_classes": 10, "input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'
    with torch.no_grad():
        model.pos_embed.mul_(2)
    save_weights(model.state_dict(), tmp_path / 'w.safetensors', {'pretrained_cfg': cfg})
    return f'cct_2_3x2={tmp_path / "w.safetensors"}'


def analyze(folder: Path, *args: str) -> dict[str, dict[str, np.ndarray]]:
    """Runs it; what the .npz files hold, by name."""
    assert main(['analyze', *args, '--output', str(folder / 'out'), '--device', 'cpu']) == 0
    assert all(path.stat().st_size > 2000 for path in (folder / 'out').glob('*.png'))
    assert list((folder / 'out').glob('*.png')), 'no picture'
    return {path.stem: dict(np.load(path)) for path in (folder / 'out').glob('*.npz')}


def test_attention_and_pooling_of_digits(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ('--data', 'digits', '--images', '20')
    reached, = analyze(tmp_path, 'attention', weights, *data).values()
    assert reached['distance'].shape == (2, 2) and 0 < reached['entropy'].min() <= math.log(16) + 1e-6
    assert reached['uniform_entropy'] == pytest.approx([math.log(16)] * 2) and reached['images'] == 20
    assert 'blocks.1' in capsys.readouterr().out
    pooled = analyze(tmp_path, 'pooling', weights, *data)
    found = next(arrays for name, arrays in pooled.items() if name.startswith('pooling'))
    assert found['maps'].shape == (20, 4, 4) and found['maps'].sum((1, 2)) == pytest.approx(1, abs=1e-5)


def test_similarity_and_positions_of_two_models(weights: str, tmp_path: Path) -> None:
    data = ('--data', 'digits', '--images', '21', '--batch-size', '8')
    found, = analyze(tmp_path, 'similarity', weights, *data).values()
    assert found['images'] == 16 and found['batch'] == 8
    assert np.diag(found['aa']) == pytest.approx([1, 1], abs=1e-6)
    again, = analyze(tmp_path / 'b', 'similarity', weights, *data).values()
    assert np.array_equal(found['aa'], again['aa'])
    positions = analyze(tmp_path / 'c', 'positions', weights)
    assert next(iter(positions.values()))['similarity'].shape == (4, 4, 4, 4)


def test_maps_of_files_and_temperatures(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    for i in range(2):
        Image.fromarray(np.full((30, 20, 3), 90 * i, np.uint8)).save(tmp_path / f'{i}.png')
    found, = analyze(tmp_path, 'maps', weights, '--files', str(tmp_path), '--layer', '0', '--query', '3,1').values()
    assert found['heads'].shape == (2, 2, 4, 4) and found['rollout'].shape == (2, 4, 4)
    assert {Path(name).name for name in found['names']} == {'0.png', '1.png'}
    heated = analyze(tmp_path / 'b', 'temperatures', 'sl_pit.untrained')
    values = next(iter(heated.values()))['temperature']
    assert values.shape == (12, 8) and np.nanmax(abs(values - 1)) < 1e-6 and np.isnan(values[0, 2:]).all()
    assert main(['analyze', 'support', 'sl_pit', 'resnet18']) == 0
    assert 'its tokens are merged between stages' in capsys.readouterr().out
    assert main(['analyze', 'support', 'resnet18.untrained']) == 0
    assert main(['analyze', 'support', 'resnet18.nope']) == 2
    assert main(['analyze', 'support', 'sl_pit', 'nope']) == 2
    assert "'nope'" in capsys.readouterr().err


@pytest.mark.parametrize('args, words', [
    (['temperatures', 'cct_2_3x2.untrained'], 'has no temperatures: it has no locality attention'),
    (['pooling', 'sl_vit.untrained', '--data', 'digits'], "has no pooling weights: it is read out by 'token'"),
    (['positions', 'ssl_swin.untrained'], 'has no table of positions'),
    (['attention', 'resnet18.untrained', '--data', 'digits'], 'its blocks are not known'),
    (['attention', 'cct_2_3x2.untrained'], 'Give --data SOURCE'),
    (['attention', 'cct_2_3y2', '--data', 'digits'], 'Did you mean'),
    (['attention', 'sl_vit', '--data', 'digits'], 'There are no weights of sl_vit: give sl_vit=FILE, or sl_vit.un'),
    (['attention', 'sl_vit=none.pth', '--data', 'digits'], 'There is no weights file none.pth'),
    (['attention', 'sl_vit', 'sl_vit', '--data', 'digits'], 'given twice'),
    (['positions', 'w/a b', 'w/a_b'], 'would have the same name'),
    (['maps', 'sl_vit.untrained', '--data', 'digits', '--query', '3'], 'expected ROW,COL'),
    (['maps', 'sl_vit.untrained', '--data', 'digits', '--images', '0'], "--images: '0' is not a whole number"),
    (['maps', 'sl_vit.untrained', '--files', 'nowhere.png'], 'There is no image or folder'),
    (['similarity', 'sl_vit', 'sl_pit', 'sl_t2t', '--data', 'digits'], 'expected one or two'),
    (['similarity', 'sl_vit.untrained', '--data', 'digits', '--images', '3'], 'expected 4 or more'),
    (['similarity', 'sl_vit.untrained', '--data', 'digits', '--split', 'val'], 'has no val images'),
    (['temperatures', 'sl_vit.untrained', '--device', 'cuda:77'], "Device 'cuda:77' cannot be used"),
])
def test_what_cannot_be_done_is_one_line(
        args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['analyze', *args, '--output', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1 and not (tmp_path / 'out').exists()


def test_a_missing_matplotlib_is_said_before_anything(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    assert main(['analyze', 'positions', 'cct_2_3x2.untrained', '--output', str(tmp_path / 'out')]) == 2
    assert "pip install 'tinyvit-zoo[analysis]'" in capsys.readouterr().err and not (tmp_path / 'out').exists()
