"""Processes (`torchrun` starts them, DistributedDataParallel keeps them together), devices, precision and versions."""
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist

from ..errors import ZooError
from ..version import __version__
from .text import one_line

_FORMATS = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


@dataclass(frozen=True)
class World:
    """The processes of this training; with one, every method does nothing."""
    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(float(flag), device=self.device))) if self.size > 1 else flag

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each process, on every process."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process go ahead and download and decode; the others read its cache."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Yield the World of `torchrun`'s environment variables. `device`: 'auto', 'cpu', 'cuda', 'cuda:1', ..."""
    try:
        size, rank, local = (int(os.environ.get(key, default)) for key, default in (
            ('WORLD_SIZE', 1), ('RANK', 0), ('LOCAL_RANK', 0)))
    except ValueError as e:
        raise ZooError(f'WORLD_SIZE, RANK and LOCAL_RANK must be whole numbers ({e}): torchrun sets them.') from e
    chosen = choose_device(device, local if size > 1 else None)
    if size == 1:
        yield World(0, 1, chosen)
        return
    try:
        dist.init_process_group('nccl' if chosen.type == 'cuda' else 'gloo', timeout=timedelta(hours=2))
    except (ValueError, RuntimeError) as e:     # torch's, of missing or odd addresses and ranks
        raise ZooError(f'The processes cannot connect ({one_line(e)}): start them by torchrun.') from e
    try:
        yield World(rank, size, chosen)
    except RuntimeError as e:
        if not isinstance(e, dist.DistError) and 'gloo/transport' not in str(e):    # gloo has no type of its own
            raise
        raise ZooError('Another process of this training has ended: resume all of them (--resume, resume=True).') from e
    finally:
        dist.destroy_process_group()


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device, checked to work; 'auto' is a GPU if there is one. `local_rank` picks one of several."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'cuda' and local_rank is not None:
        name = f'cuda:{local_rank}'
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as e:  # each kind of device has its own errors
        raise ZooError(f'Device {name!r} cannot be used here: {one_line(e)} Use the device cpu.') from e
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    return device


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the type for autocast, None for plain float32. 'auto' is bf16 if the device has units for it."""
    if name == 'auto':
        if device.type == 'cuda':
            has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            has_units = device.type == 'cpu' and (
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        return torch.bfloat16 if has_units else None
    if name not in _FORMATS:
        raise ZooError(f'precision is {name!r}, expected auto, {", ".join(_FORMATS)}.')
    if name == 'fp16' and device.type == 'cpu':
        raise ZooError('precision fp16 is a thousand times slower on a CPU: use bf16, fp32 or auto.')
    return _FORMATS[name]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    return nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)


@contextmanager
def fast_kernels(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """On a GPU choose convolutions by their speed and, beside autocast, multiply what stays float32 in TF32."""
    if device.type != 'cuda':
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision('high' if dtype else before[0])
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]


def machine() -> dict[str, str]:
    """Return versions and hardware, to explain why figures differ."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ''
    return {'tinyvit_zoo': __version__, 'torch': torch.__version__, 'timm': timm.__version__,
            'python': platform.python_version(), 'system': platform.platform(), 'threads': str(torch.get_num_threads()),
            'device': gpu or cpu_name()}


def cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
