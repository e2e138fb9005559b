"""The benchmark: contenders, what is timed, and what it refuses."""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tinyvit_zoo.measure import comparison as timing
from tinyvit_zoo.measure.counting import peak_memory

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import bench_models
import bench_runtimes
import bench_training
import benchmark
import plain

Run = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the benchmark, which must fail before it times; return the one line."""
    def run_benchmark(*argv: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            sys.exit(benchmark.main(list(argv)))
        out, err = capsys.readouterr()
        assert exit_.value.code == 2 and err.count('\n') == 1 and 'images/s' not in out
        return err
    return run_benchmark


def bench(tmp_path: Path, *argv: str) -> dict[str, Any]:
    file = tmp_path / 'r.json'
    assert benchmark.main([*argv, '--seconds', '0', '--json', str(file)]) == 0
    return json.loads(file.read_text())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons run in this process."""
    monkeypatch.setattr(bench_models, 'ProcessPoolExecutor', lambda count, mp_context: ThreadPoolExecutor(count))


@pytest.mark.usefixtures('here')
def test_benchmark_beside_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('OMP_WAIT_POLICY', 'passive')
    report = bench(tmp_path, 'models', 'cct_2_3x2', '--baseline', 'mobilenetv3_small_100', '--img-size', '32',
                   '--mode', 'latency', 'train', '--batch-size', '4')
    assert report['machine']['threads'] == torch.get_num_threads() and report['machine']['device']
    assert 'OMP_WAIT_POLICY=passive' in report['machine']['OpenMP'] and report['machine']['load average'] >= 0
    rows = report['results']
    assert [(row['mode'], row['batch'], row['contender']) for row in rows] == [
        (mode, batch, name) for mode, batch in (('latency', 1), ('train', 4))
        for name in ('mobilenetv3_small_100', 'cct_2_3x2')]
    for row in rows:
        assert row['images_per_second'] == pytest.approx(1e3 * row['batch'] / row['median_ms'])
        assert row['median_ms'] <= row['p95_ms'] and row['ratio_range'][0] <= row['ratio'] <= row['ratio_range'][1]
    model = timm.create_model('cct_2_3x2', device='meta')
    assert rows[1]['memory_bytes'] == pytest.approx(peak_memory(model), rel=0.05)
    assert rows[3]['memory_bytes'] > rows[1]['memory_bytes']


@pytest.mark.usefixtures('here')
def test_a_model_and_its_plain_implementation(tmp_path: Path) -> None:
    """The yardstick gives the same logits (checked inside)."""
    rows = bench(tmp_path, 'models', 'cct_2_3x2', '--batch-size', '4')['results']
    assert [row['contender'] for row in rows] == ['plain', 'ours'] * 2


@pytest.mark.usefixtures('here')
def test_what_an_option_costs(tmp_path: Path) -> None:
    rows = bench(tmp_path, 'models', 'sl_vit', '--batch-size', '2', '--mode', 'inference',
                 '--without', 'spt', 'lsa')['results']
    assert [row['contender'] for row in rows if 'saved' in row] == ['without spt', 'without lsa']


def test_augmentation(tmp_path: Path) -> None:
    rows = bench(tmp_path, 'augment', '--images', '64', '--batch-size', '32', '--img-size', '16')['results']
    assert [row['contender'].rstrip('0123456789') for row in rows] == ['timm x', 'ours']
    rows = bench(tmp_path, 'augment', '--model', 'cct_2_3x2', '--batch-size', '4')['results']
    assert [row['contender'] for row in rows] == ['normalised', 'augmented']


def test_scaling(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    plot = tmp_path / 'p.png'
    rows = bench(tmp_path, 'scaling', 'vit_lite_2_4', 'cvt_2_4', '--batch-sizes', '1', '3', '--img-sizes', '16', '32',
                 '--plot', str(plot))['results']
    assert [(row['img_size'], row['batch'], row['contender']) for row in rows] == [
        (size, batch, name) for size in (16, 32) for batch in (1, 3) for name in ('vit_lite_2_4', 'cvt_2_4')]
    assert plot.read_bytes().startswith(b'\x89PNG')


def test_compile_time_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in the rounds."""
    class Compiled(nn.Module):
        first = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.2 if self.first else 0)
            self.first = False
            return x

    monkeypatch.setattr(torch, 'compile', lambda model: Compiled())
    models = bench_models._with_compiled({'a': nn.Identity()}, True)
    plain, compiled = bench_models.bench(models, torch.zeros(2, 3), False, False, 0)
    assert plain['compile_seconds'] is None and compiled['contender'] == 'a compiled'
    assert compiled['compile_seconds'] >= 0.2 and compiled['p95_ms'] < 100


@pytest.mark.slow
def test_the_processes_of_a_contender(tmp_path: Path) -> None:
    script = tmp_path / 'contender.py'
    script.write_text(
        'import sys, torch\n'
        'from tinyvit_zoo.runtime.world import join_world\n'
        'with join_world("cpu") as world:\n'
        '    print("ready" * world.first, end="\\n" * world.first, flush=True)\n'
        '    while world.any(world.first and bool(sys.stdin.readline())):\n'
        '        threads = world.sum(torch.tensor(10. ** world.rank * torch.get_num_threads())).item()\n'
        '        print(f"{threads} {sys.argv[1]}\\n" * world.first, end="", flush=True)\n')
    with bench_training.contender(script, '5', processes=2) as ask:
        assert ask() == ask() == [11, 5]

    assert 'ours, 3 processes' in bench_training._contenders(6, 'cpu', threads=3)
    assert list(bench_training._contenders(7, 'cpu', threads=3)) == ['plain', 'ours']
    assert list(bench_training._contenders(6, 'cuda', threads=3)) == [
        'plain', 'ours', 'ours, no graphs', 'ours, compiled']
    assert list(bench_training._contenders(6, 'cpu', threads=1)) == ['plain', 'ours']


@pytest.mark.parametrize('name, train, bf16', [
    ('sl_vit', True, False), ('cct_2_3x2', True, True), ('plain_swin', False, True)])
def test_products_alone(name: str, train: bool, bf16: bool) -> None:
    """All of a step's, as often and as large as in it."""
    def flops(step: timing.Step) -> dict[str, int]:
        with FlopCounterMode(display=False) as counter:
            step()
        return {str(op): value for op, value in counter.get_flop_counts()['Global'].items()}

    model = plain.plain(timm.create_model(name)).train(train)
    step = timing.make_step(model, torch.randn(2, 3, 32, 32), train, bf16)
    alone = flops(bench_models.products_alone(step))
    assert alone == flops(step) and sum(alone.values()) > 1e8


def test_the_share_of_the_peak() -> None:
    """The products of a step of `cct_2_3x2`, 33 M multiply-adds an image and attention's beside; a product's speed."""
    assert bench_training.step_flops('cct_2_3x2.c10', 128) == pytest.approx(6 * 35.3e6 * 128, rel=0.01)
    assert bench_training.peak_flops(torch.device('cpu'), 'fp32') > 1e8


def test_memory_of_a_step() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 400, bias=False), nn.Linear(400, 7, bias=False))
    images, weights = torch.zeros(5, 3, 2, 2), 12 * 400 + 400 * 7
    held = bench_models.held_memory(timing.make_step(model, images, False, False), model, images)
    assert held == 4 * (weights + 5 * (12 + 400 + 7))
    trained = bench_models.held_memory(timing.make_step(model, images, True, False), model, images)
    assert 0 <= trained - 4 * (2 * weights + 5 * (12 + 400)) < 4 * 5 * 20
    assert all(p.grad is None for p in model.parameters())


def test_benchmark_refuses_in_one_line(refused: Run, tmp_path: Path) -> None:
    assert 'different sizes (resnet18 224x224, sl_vit 32x32)' in refused(
        'models', 'sl_vit', '--baseline', 'resnet18')
    assert 'no model' in refused('models', 'sl_vit', '--baseline', 'resnet19')
    assert 'no plain implementation' in refused('models', 'mae_vit_c10')
    assert "sl_vit has no option 'spd'" in refused('models', 'sl_vit', '--without', 'spd')
    for option in (('--without', 'spt'), ('--products',)):
        assert 'leave out --baseline' in refused('models', 'sl_vit', '--baseline', 'plain_vit', *option)
    assert 'this model needs at least 8 x 8' in refused('scaling', 'sl_swin', '--img-sizes', '32', '4')
    assert 'cannot take 1 x 3 x 8 x 8' in refused('scaling', 'vit_tiny_patch16_224', '--img-sizes', '8')
    if not torch.cuda.is_available():
        assert "Device 'cuda' cannot be used here" in refused('models', 'sl_vit', '--device', 'cuda')


def test_a_missing_extra_is_named(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert "pip install 'tinyvit-zoo[analysis]'" in refused('scaling', 'cct_2_3x2', '--plot', 'x.png')


def test_time_to_an_accuracy(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One more training than seeds is run; seconds are those of the logs."""
    assert benchmark.main(['record', 'cct_2_3x2.digits', '--data', data, '--runs', '2', '--epochs', '1', '--target',
                           '10', '--precision', 'fp32', '--json', str(tmp_path / 'a.json')]) == 0
    out = capsys.readouterr().out
    assert out.count('1 epochs of') == 3 and 'n = 2: top-1 ' in out and ' 2 of 2 at 10 % or above' in out
    row, = json.loads((tmp_path / 'a.json').read_text())['results']
    assert len(row['all_top1']) == 2 and 0 < row['seconds'] < 60 and row['reached'] == 2


def test_the_table_of_runtimes_names_the_fastest_and_leaves_out_what_takes_one_image() -> None:
    times = {1: {'PyTorch': 2., 'ONNX': 1., 'LiteRT': 1.5}, 128: {'PyTorch': 90., 'ONNX': 100.}}
    rows = [{'model': 'cct_2_3x2', 'pixels': 32, 'batch': batch, 'contender': title, 'median_ms': ms,
             'ratio': times[batch]['PyTorch'] / ms, 'megabytes': 1.13}
            for batch in times for title, ms in times[batch].items()]
    lines = bench_runtimes.table(rows).splitlines()
    assert lines[2:4] == ['| `cct_2_3x2` | 32 | 1.1, - | 1 | 2 | **1** | 1.5 |',
                          '| `cct_2_3x2` | 32 | 1.1, - | 128 | **90** | 100 |  |']
    assert lines[-1] == 'Speed beside PyTorch, median over the models, batch 128: PyTorch 1.00, ONNX 0.90.'
