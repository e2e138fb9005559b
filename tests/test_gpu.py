"""What a GPU computes is what a CPU computes, and trainings use it as they should.

Skipped without a GPU; `--device cpu` runs the same code here.
"""
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from training_cases import stop_at, torchrun, training

from tinyvit_zoo import list_models
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.models import image_size
from tinyvit_zoo.training.run_dir import read_log

pytestmark = pytest.mark.gpu
EXACT = ['--precision', 'fp32', '--model-args', "{'attn_drop_rate': 0., 'drop_path_rate': 0.}"]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device, with products in full precision."""
    name = request.config.getoption('--device') or ('cuda' if torch.cuda.is_available() else '')
    if not name:
        pytest.skip('needs a GPU, or --device')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield name
    torch.backends.cudnn.allow_tf32 = True


def command(data: str, output: Path, device: str, *more: str) -> list[str]:
    return [*training(data, output, *EXACT), '--device', device, *more]


def train(data: str, output: Path, device: str, *more: str) -> list[float]:
    """Return the losses of the epochs."""
    assert main(command(data, output, device, *more)) == 0
    return [row['train_loss'] for row in read_log(output)]


@pytest.mark.parametrize('name', list_models())
def test_outputs_and_gradients(name: str, device: str) -> None:
    """In float32 those of a CPU; in bf16 nearly, and finite gradients in training."""
    model = timm.create_model(name, num_classes=10).eval()
    x = torch.randn(2, model.in_chans, *image_size(model))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(model.to(device)(x.to(device)).cpu(), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            half = model(x.to(device)).float().cpu()
    torch.testing.assert_close(half, expected, rtol=0.1, atol=0.1)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        model.train()(x.to(device)).float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('name', ['cct_7_3x1', 'sl_vit', 'sl_swin', 'sl_cait', 'mae_vit_c10'])
def test_compiled_is_eager(name: str, device: str) -> None:
    model = timm.create_model(name, num_classes=10).eval().to(device)
    x = torch.randn(4, model.in_chans, *image_size(model), device=device)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw', 'nmuon'])
def test_graphs_change_nothing(
        data: str, tmp_path: Path, device: str, optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses of graphs, of plain steps, and of compiled ones."""
    losses = [train(data, tmp_path / str(i), device, '--opt', optimizer, *more)
              for i, more in enumerate([['--no-graphs'], [], ['--compile']])]
    assert 'without CUDA graphs' not in capsys.readouterr().out
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[2] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize('method', ['mae_small', 'moco_v3', 'self_distill'])
def test_pretraining(data: str, tmp_path: Path, device: str, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['pretrain', method, '--model', 'vit_lite_2_4', '--data', data, '--output', str(tmp_path / 'run'),
                 '--img-size', '16', '--epochs', '2', '--batch-size', '16', '--device', device]) == 0
    assert 'without CUDA graphs' not in capsys.readouterr().out


def test_a_resumed_run(data: str, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes on with the losses of one that was not stopped."""
    whole = train(data, tmp_path / 'whole', device)
    with monkeypatch.context() as patched:
        stop_at(patched, 8, signal.SIGTERM)
        with pytest.raises(SystemExit):
            sys.exit(main(command(data, tmp_path / 'run', device)))
    assert train(data, tmp_path / 'run', device, '--resume') == pytest.approx(whole, rel=1e-3)


def test_two_gpus(data: str, tmp_path: Path, device: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip('needs two GPUs')
    one = train(data, tmp_path / 'one', device, '--opt', 'sgd')
    done = torchrun(*command(data, tmp_path / 'two', device, '--opt', 'sgd'))
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row['train_loss'] for row in read_log(tmp_path / 'two')] == pytest.approx(one, rel=1e-2)


def test_memory_does_not_grow(data: str, tmp_path: Path, device: str) -> None:
    """Over 200 steps, evaluations and checkpoints."""
    most = []
    for epochs in ('4', '34'):
        if device.startswith('cuda'):
            torch.cuda.reset_peak_memory_stats()
        train(data, tmp_path / epochs, device, '--epochs', epochs, '--checkpoint-minutes', '0.02')
        most.append(torch.cuda.max_memory_allocated() if device.startswith('cuda') else 1)
    assert most[1] <= 1.02 * most[0]
