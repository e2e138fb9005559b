"""A small training for the tests."""
import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

SETTINGS = [
    '--epochs', '3', '--batch-size', '16', '--warmup-epochs', '1', '--img-size', '16', '--lr', '2e-3', '--ema', '0.9',
    '--crop-padding', '2', '--mixup', '0.2', '--mix-off-epoch', '2', '--auto-augment', '', '--crop-scale', 'None']


def write_npz(path: Path, train: int = 96, test: int = 24, classes: int = 4, size: int = 16) -> str:
    """Images whose colour tells the class, mostly. Returns the source."""
    rng = np.random.RandomState(0)
    labels = np.arange(train + test) % classes
    images = rng.randint(0, 200, (train + test, size, size, 3)) + (labels * 12)[:, None, None, None]
    np.savez(path, train_images=images[:train].astype(np.uint8), train_labels=labels[:train],
             test_images=images[train:].astype(np.uint8), test_labels=labels[train:])
    return f'npz:{path}'


def training(data: str, output: Path, *more: str, model: str = 'cct_2_3x2') -> list[str]:
    """The arguments of a small `tinyvit-zoo train`."""
    return ['train', '--model', model, '--data', data, '--output', str(output), '--device', 'cpu', '--precision',
            'fp32', '--from-weights', '', '--layer-decay', '1', *SETTINGS, *more]


def run(data: str, output: Path, *more: str, model: str = 'cct_2_3x2') -> int:
    """It, in this process and with one thread: exit code."""
    from tinyvit_zoo.cli.main import main

    torch.set_num_threads(1)
    try:
        return main(training(data, output, *more, model=model))
    except SystemExit as e:
        return int(e.code or 0)


def torchrun(*argv: str, nodes: int = 1, env: dict[str, str] | None = None) -> 'subprocess.CompletedProcess[str]':
    """`tinyvit-zoo` in two processes, of one thread each, on one machine or as on two."""
    port = 0
    if nodes > 1:
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', str(nodes), '--nproc-per-node',
               str(2 // nodes), '--rdzv-id', 'test', '--rdzv-backend', 'c10d', '--rdzv-endpoint', f'localhost:{port}',
               '-m', 'tinyvit_zoo', *argv]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **(env or {})}
    others = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
              for _ in range(nodes - 1)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert [other.wait(60) for other in others] == [done.returncode] * len(others)
    return done


def weights(output: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(output / 'weights.safetensors')


def assert_same_bits(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, behind its digest."""
    return torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)


def stop_at(monkeypatch: Any, step: int, number: int) -> None:
    """Have a signal arrive in the middle of a step."""
    from tinyvit_zoo.training.loop import Loop

    whole = Loop.train_step

    def step_and_signal(self: Loop, *args: torch.Tensor) -> None:
        whole(self, *args)
        if self.step + 1 == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Loop, 'train_step', step_and_signal)

