import contextlib
import sys
from pathlib import Path

import pytest
import torch

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401  torch.compile's builder wants it to come before anything that imports distutils

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
