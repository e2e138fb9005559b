"""Weights as the tests of the command line need them."""
import dataclasses
import sys
from typing import Any

import pytest
from timm.models import get_pretrained_cfg

import tinyvit_zoo
from tinyvit_zoo.weights import Weight, catalogue


def patch_figures(monkeypatch: pytest.MonkeyPatch, weight: Weight, **figures: Any) -> str:
    """Give a weight of the catalogue other figures; return the kind of its source."""
    entries = {**catalogue(), weight.name: dataclasses.replace(weight, **figures)}
    monkeypatch.setattr(sys.modules[Weight.__module__], 'catalogue', lambda: entries)
    return 'package' if weight.file else 'Hub' if weight.hf_hub_id else 'URL'


def without_weights() -> str:
    return next(n for n in tinyvit_zoo.list_models() if not get_pretrained_cfg(n).has_weights)
