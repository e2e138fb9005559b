"""Damaged weight files are refused in one line, or give the same tensors."""
from pathlib import Path

import pytest
import torch
from fuzz_cases import cases, damaged, outcome
from hypothesis import given, strategies as st

from tinyvit_zoo.weights import read_weights, save_weights

TENSORS = {'a.weight': torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), 'b': torch.arange(7)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('fuzz')


@cases(300)
@given(data=st.data())
def test_safetensors(data: st.DataObject, folder: Path) -> None:
    whole, path = folder / 'whole.safetensors', folder / 'damaged.safetensors'
    if not whole.exists():
        save_weights(TENSORS, whole)
    content = whole.read_bytes()
    path.write_bytes(data.draw(damaged(content)))
    found, message = outcome(lambda: read_weights(path))
    assert message or (found and found.keys() == TENSORS.keys() and all(torch.equal(found[k], TENSORS[k])
                                                                        for k in TENSORS))
