"""count, compare and the benchmark: the figures are those of the library, of the papers and of the clock."""
from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tinyvit_zoo.cli.main import main
from tinyvit_zoo.measure import comparison, costs, speed as timing
from tinyvit_zoo.measure.counting import count, peak_memory
from tinyvit_zoo.weights import catalogue

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))
import bench_models
import bench_training
import benchmark
import plain

CPU = torch.device('cpu')
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*argv: str) -> str:
        assert main(list(argv)) == 0
        return capsys.readouterr().out
    return run_command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """The one line that a command is refused with, nothing on stdout."""
    def refuse(*argv: str, tool: Any = main) -> str:
        try:
            code = tool(list(argv))
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        assert code == 2 and err.count('\n') == 1 and 'images/s' not in out
        return err
    return refuse


# -- count -------------------------------------------------------------------------------------------------------------
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


class NormValues(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_layer_norm.default:
            self.total += out[0].numel()
        return out


@pytest.mark.parametrize('size, classes, name', [
    (size, classes, name) for (size, classes), figures in costs.PAPERS.items() for name in figures])
def test_why_a_paper_has_another_figure(size: int, classes: int, name: str) -> None:
    """The footnotes are true."""
    printed, why = costs.PAPERS[size, classes][name]
    model: Any = timm.create_model(name, num_classes=classes, img_size=size, device='meta').eval()
    macs = count(model).macs / 1e6
    with NormValues() as norms, torch.no_grad():
        model(torch.empty(1, 3, size, size, device='meta'))
    length, width = model.pos_embed.shape[1:] if getattr(model, 'pos_embed', None) is not None else (0, 0)
    products = len(getattr(model, 'blocks', [])) * 2 * length ** 2 * width / 1e6
    if why == costs.NO_PRODUCTS:
        assert macs - products == pytest.approx(printed, abs=(5 if printed > 1000 else 0.5) + 0.001 * printed)
    elif why == costs.NORMS:
        assert macs + norms.total / 1e6 == pytest.approx(printed, abs=0.06)
    elif why == costs.SLIPS:
        assert abs(macs + norms.total / 1e6 - printed) > 1
    elif why == costs.PADDING:  # 12 tokens of it, in 4 blocks, to q, k, v and back
        assert macs + 12 * 4 * 4 * 384 ** 2 / 1e6 == pytest.approx(printed, abs=0.1)
    else:
        projections = len(model.blocks) * length * 4 * width ** 2 / 1e6
        assert macs - products - projections < printed < macs


def test_count_refuses_in_one_line(refused: Run) -> None:
    assert 'Did you mean cct_7_3x1' in refused('count', 'cct_7_3x1x')
    assert "matches 'xct_*'" in refused('count', 'xct_*')
    assert 'this model takes 8 x 8 pixels and more' in refused('count', 'sl_swin', '--img-size', '4')
    assert 'num_classes is -1' in refused('count', 'sl_vit', '--num-classes', '-1')
    assert 'one side, or height and width' in refused('count', 'sl_vit', '--img-size', '8', '8', '8')
    assert 'no weights' in refused('count', 'cct_7_3x1.nothing')
    assert 'nest_tiny cannot be built so: `patch_size` must divide' in refused('count', 'nest_tiny', '--img-size', '30')
    assert 'VisionTransformer cannot take 1 x 3 x 8 x 8' in refused('count', 'vit_tiny_patch16_224', '--img-size', '8')


def test_a_missing_extra_is_named(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ('fvcore.nn', 'matplotlib'):
        monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'tinyvit-zoo[analysis]'" in refused('count', 'cct_2_3x2', '--fvcore')
    assert "pip install 'tinyvit-zoo[analysis]'" in refused('compare', 'cct_2_3x2', '--plot', 'x.png')
    assert "pip install 'tinyvit-zoo[analysis]'" in refused('scaling', 'cct_2_3x2', '--plot', 'x.png',
                                                            tool=benchmark.main)


# -- the clock ---------------------------------------------------------------------------------------------------------
def test_ratios_and_percentiles() -> None:
    first, second = timing.summarise({'a': [2., 4., 6.], 'b': [1., 1., 3.]}, 12)
    assert first['images_per_second'] == 3 and first['ratio'] == 1 and first['ratio_range'] == [1, 1]
    assert second['images_per_second'] == 12 and second['ratio'] == 2 and second['ratio_range'] == [2, 4]
    assert second['median_ms'] == 1000 and second['p95_ms'] == 3000
    row, = timing.summarise({'a': [float(i) for i in range(100, 0, -1)]}, 1)
    assert row['p95_ms'] == 95_000


def test_contenders_take_turns_and_the_time_is_theirs() -> None:
    calls: list[str] = []

    def sleeper(name: str, seconds: float) -> Callable[[], object]:
        return lambda: (calls.append(name), time.sleep(seconds))

    times = timing.rounds({'a': sleeper('a', 0.01), 'b': sleeper('b', 0.03)}, CPU, 0.2)
    assert calls == ['a', 'a', 'b', 'b'] + ['a', 'b'] * len(times['a'])
    assert min(times['a']) >= 0.01 and min(times['b']) >= 0.03
    assert len(timing.rounds({'a': sleeper('a', 0.)}, CPU, 0.)['a']) == 3


def test_memory_of_a_step() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 400, bias=False), nn.Linear(400, 7, bias=False))
    images, weights = torch.zeros(5, 3, 2, 2), 12 * 400 + 400 * 7
    held = timing.held_memory(timing.make_step(model, images, False, False), model, images)
    assert held == 4 * (weights + 5 * (12 + 400 + 7))
    trained = timing.held_memory(timing.make_step(model, images, True, False), model, images)
    assert 0 <= trained - 4 * (2 * weights + 5 * (12 + 400)) < 4 * 5 * 20
    assert all(p.grad is None for p in model.parameters())


# -- benchmark.py ------------------------------------------------------------------------------------------------------
def bench(tmp_path: Path, *argv: str) -> dict[str, Any]:
    file = tmp_path / 'r.json'
    assert benchmark.main([*argv, '--seconds', '0', '--json', str(file)]) == 0
    return json.loads(file.read_text())


def test_benchmark_beside_a_baseline(tmp_path: Path) -> None:
    report = bench(tmp_path, 'models', 'cct_2_3x2', '--baseline', 'mobilenetv3_small_100', '--img-size', '32',
                   '--mode', 'latency', 'train', '--batch-size', '4')
    assert report['machine']['threads'] == torch.get_num_threads() and report['machine']['device']
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
    assert list(bench_training._contenders(6, 'cuda', threads=3)) == ['plain', 'ours']
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


def test_benchmark_refuses_in_one_line(refused: Run, tmp_path: Path) -> None:
    tool = benchmark.main
    assert 'different sizes (resnet18 224x224, sl_vit 32x32)' in refused(
        'models', 'sl_vit', '--baseline', 'resnet18', tool=tool)
    assert 'no model' in refused('models', 'sl_vit', '--baseline', 'resnet19', tool=tool)
    assert 'no plain implementation' in refused('models', 'mae_vit_c10', tool=tool)
    for option in (('--without', 'spt'), ('--products',)):
        assert 'leave out --baseline' in refused('models', 'sl_vit', '--baseline', 'plain_vit', *option, tool=tool)
    assert 'this model takes 8 x 8' in refused('scaling', 'sl_swin', '--img-sizes', '32', '4', tool=tool)
    assert 'cannot take 1 x 3 x 8 x 8' in refused('scaling', 'vit_tiny_patch16_224', '--img-sizes', '8', tool=tool)
    if not torch.cuda.is_available():
        assert "Device 'cuda' cannot be used here" in refused('models', 'sl_vit', '--device', 'cuda', tool=tool)
        assert "Device 'cuda' cannot be used here" in refused('compare', 'sl_vit', '--device', 'cuda')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_a_gpu_is_timed_by_its_events() -> None:
    device, x = torch.device('cuda'), torch.zeros(4096, 4096, device='cuda')
    one, ten = (timing.rounds({'a': lambda n=n: [x @ x for _ in range(n)]}, device, 1)['a'] for n in (1, 10))
    assert sorted(ten)[len(ten) // 2] == pytest.approx(10 * sorted(one)[len(one) // 2], rel=0.3)


# -- compare -----------------------------------------------------------------------------------------------------------
def test_compare(run: Run, tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    plot = tmp_path / 'c.png'
    found = json.loads(run('compare', 'cct_2_3x2', 'vit_lite_2_4', 'sl_vit', 'vit_lite', '--dataset', 'c100',
                           '--seconds', '0', '--batch-size', '2', '--plot', str(plot), '--json'))
    cct, small, local, alias = found['models']
    assert cct['weights'] == 'cct_2_3x2.c100' and cct['num_classes'] == 100
    assert cct['measured'] == catalogue()[cct['weights']].measured['top1'] and cct['published'] is None
    assert local['weights'] is None and local['published'] == 76.92 and small['published'] is None
    assert alias['weights'] == 'vit_lite_7_4.shi_c100_200e'
    assert alias['published'] == catalogue()[alias['weights']].published['top1'] and alias['measured'] is None
    assert local['params'] == 2_747_248 and cct['ratio'] == 1
    assert local['ratio_range'][0] <= local['ratio'] <= local['ratio_range'][1] and local['rounds'] >= 3
    assert found['machine']['batch_size'] == 2 and plot.read_bytes().startswith(b'\x89PNG')


def test_what_was_measured_is_shown_as_such(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = next(w for w in catalogue().values() if w.published)
    measured = dataclasses.replace(weight, measured={'top1': 12.34})
    monkeypatch.setattr(
        comparison, 'weight_of', lambda cfg: measured if cfg.architecture == weight.architecture else None)
    lines = run('compare', weight.architecture, 'resnet18', '--no-speed').splitlines()
    assert lines[1].split()[-2:] == ['12.34', f'{weight.published["top1"]:.2f}']
    assert lines[2].split()[0] == 'resnet18' and lines[2].split()[-2:] == ['-', '-'] and 'images/s' not in lines[0]


def test_a_figure_is_shown_for_what_it_was_measured_on(run: Run) -> None:
    """Not for another size, nor a paper's count for a batch that it does not speak of."""
    found = json.loads(run('compare', 'cct_2_3x2', '--img-size', '64', '--no-speed', '--json'))['models'][0]
    assert found['measured'] is None and found['published'] is None and found['weights']
    one, eight = (json.loads(run('count', 'cct_7_3x1', '--batch-size', n, '--json'))[0] for n in ('1', '8'))
    assert eight['paper_macs'] == 8 * one['paper_macs'] == 8 * 947_000_000
    assert json.loads(run('count', 'cct_7_3x1', '--img-size', '32', '64', '--json'))[0]['paper_macs'] is None


@pytest.mark.parametrize('argv', [
    ['count', 'sl_vit', 'cct_2_3x2', '--parts'], ['compare', 'sl_vit', 'cct_2_3x2', '--no-speed']])
def test_csv_has_what_json_has(argv: list[str], run: Run) -> None:
    found = json.loads(run(*argv, '--json'))
    rows = list(csv.DictReader(io.StringIO(run(*argv, '--csv'))))
    for expected, row in zip(found if argv[0] == 'count' else found['models'], rows, strict=True):
        assert row['name'] == expected['name'] and int(row['params']) == expected['params'] and 'parts' not in row
        assert int(row['macs']) == expected['macs'] and row['input_size'] == ' '.join(map(str, expected['input_size']))


def test_compare_refuses_before_it_times(refused: Run, tmp_path: Path) -> None:
    assert 'has no accuracy on c10' in refused('compare', 'cct_2_3x2.c10', 'cct_2_3x2.digits', '--no-speed')
    assert 'expected a name that ends in .png' in refused('compare', 'sl_vit', '--plot', 'x.bmp')
    assert 'there is no folder' in refused('compare', 'sl_vit', '--plot', str(tmp_path / 'no' / 'x.png'))
    assert 'There is no model' in refused('compare', 'sl_vit', 'sl_vat')
