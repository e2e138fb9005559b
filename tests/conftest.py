import contextlib
import sys
from pathlib import Path

import pytest
import torch

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401  torch.compile's builder wants it to come before anything that imports distutils

from tinyvit_zoo.kernels import slicing

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a training in another test has said of this process's memory."""
    monkeypatch.setattr(slicing, 'memory_is_kept', False)
