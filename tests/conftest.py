import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# the workers of pytest-xdist share the cores, and none spins: the processes that tests start inherit it
os.environ.setdefault('OMP_NUM_THREADS', str(max(
    1, (os.cpu_count() or 1) // int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1)))))
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import pytest
import torch

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401  torch.compile's builder wants it to come before anything that imports distutils

if TYPE_CHECKING:
    from forked import Server

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--device', help='run the tests of GPUs on this device (default: a GPU, or they are skipped)')


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A source of small images of four classes."""
    from training_cases import write_npz

    return write_npz(tmp_path_factory.mktemp('data') / 'images.npz')


@pytest.fixture(scope='session')
def server() -> Iterator['Server']:
    """Runs commands in processes of their own, which need no time for imports."""
    from forked import Server

    if not hasattr(os, 'fork'):
        pytest.skip('needs fork')
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
