"""One process or many: `torchrun` starts them, DistributedDataParallel keeps them together."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..errors import ZooError


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
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)))

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
    size, rank, local = (int(os.environ.get(key, default)) for key, default in (
        ('WORLD_SIZE', 1), ('RANK', 0), ('LOCAL_RANK', 0)))
    chosen = choose_device(device, local if size > 1 else None)
    if size == 1:
        yield World(0, 1, chosen)
        return
    dist.init_process_group('nccl' if chosen.type == 'cuda' else 'gloo', timeout=timedelta(hours=2))
    try:
        yield World(rank, size, chosen)
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
        raise ZooError(f'Device {name!r} cannot be used here: {str(e).splitlines()[0]} Take --device cpu.') from e
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    return device
