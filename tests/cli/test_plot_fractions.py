"""Accuracy over the share of the training images, from run directories."""
import json
from pathlib import Path

import pytest

from tinyvit_zoo.cli.main import main


def write_run(folder: Path, fraction: float, top1: float | None, name: str = 'cct_2_3x2.c10', source: str = 'cifar10',
              start: str = '') -> Path:
    folder.mkdir()
    (folder / 'recipe.json').write_text(json.dumps({
        'recipe': {'name': name, 'from_weights': start}, 'fraction': fraction,
        'data': {'source': source, 'images': round(50_000 * fraction)}}))
    if top1 is not None:
        (folder / 'result.json').write_text(json.dumps({'figures': {'test': {'top1': top1}}, 'machine': {}}))
    return folder


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main(['plot-fractions', *map(str, argv)])
    return code, *capsys.readouterr()


def test_seeds_are_averaged_and_fractions_sorted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('matplotlib')
    runs = [write_run(tmp_path / 'whole', 1., 90.), write_run(tmp_path / 'a', 0.25, 70.),
            write_run(tmp_path / 'b', 0.25, 73.), write_run(tmp_path / 'tuned', 0.25, 80.5, start='mae.safetensors')]
    code, out, _ = run(capsys, *runs, '--output', tmp_path / 'f.png')
    rows = [line.split() for line in out.splitlines()[1:4]]
    assert code == 0 and (tmp_path / 'f.png').stat().st_size > 5000
    assert rows[0] == ['cct_2_3x2.c10', '25%', '12500', '2', '71.50', '70.00', 'to', '73.00']
    assert rows[1] == ['cct_2_3x2.c10', '100%', '50000', '1', '90.00', '-']
    assert rows[2] == ['cct_2_3x2.c10', 'from', 'mae.safetensors', '25%', '12500', '1', '80.50', '-']


def test_mistakes_are_one_line_and_draw_nothing(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    whole, half = write_run(tmp_path / 'whole', 1., 90.), write_run(tmp_path / 'half', 0.5, 80.)
    open_ended = write_run(tmp_path / 'open', 0.5, None)
    several, first = write_run(tmp_path / 'several', 0.5, 0.), write_run(tmp_path / 'first', 0.5, 0., name='mae_small')
    (several / 'result.json').write_text(json.dumps({'figures': {'test': {'accuracy': 80.}}, 'machine': {}}))
    text = (first / 'recipe.json').read_text()
    (first / 'recipe.json').write_text(text.replace('"from_weights": ""', '"method": "mae_small"'))
    other = write_run(tmp_path / 'other', 0.5, 60., source='cifar100')
    again, longer, others, one, two = (write_run(tmp_path / name, size, 90.) for name, size in (
        ('again', 1.), ('longer', .5), ('x', .5), ('one', .5), ('two', .5)))
    for place, old, new in ((longer, '"from', '"epochs": 8, "from'), (others, '"images"', '"test": "a", "images"'),
                            (whole, '"images"', '"test": "b", "images"'), (one, '"from', '"seed": 3, "from'),
                            (two, '"from', '"seed": 3, "from')):
        (place / 'recipe.json').write_text((place / 'recipe.json').read_text().replace(old, new))
    for argv, said in (
            ((whole, tmp_path), 'is not a run directory'), ((whole, open_ended), 'is not finished'),
            ((whole, several), 'several labels per image'), ((whole, first), 'is a pre-training'),
            ((whole, half, half), 'half is given twice'), ((whole, again), 'All runs trained on 100%'),
            ((whole, one, two), 'on 50% have the same seed'),
            ((whole, half, longer), 'is not another seed of'), ((whole, half, others), 'different test images'),
            ((whole, other), 'different data (cifar10, cifar100)'),
            ((whole, half, '--output', 'a.bmp'), 'a.bmp')):
        code, out, err = run(capsys, *argv)
        assert (code, out, err.count('\n')) == (2, '', 1) and said in err
    assert not list(tmp_path.glob('*.png'))
    pytest.importorskip('matplotlib')
    assert run(capsys, whole, longer, '--output', tmp_path / 'f.png')[0] == 0
    assert f'{longer} and {whole} are on one curve, but differ: epochs 8 -> None' in caplog.text
