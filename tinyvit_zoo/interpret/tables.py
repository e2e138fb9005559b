"""What can be read off a model's parameters, without an image: temperatures, and tables of positions."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ZooError
from .places import Layer, block_layers


# -- temperatures ------------------------------------------------------------------------------------------------------
def no_temperatures(model: Any) -> str:
    """Why a model has no learned temperatures; '' where it has."""
    return '' if _with_temperatures(model) else 'it has no locality attention, as sl_* have (lsa=True)'


def _with_temperatures(model: Any) -> list[Layer]:
    return [layer for layer in block_layers(model) if getattr(layer.attention, 'temperature', None) is not None]


@torch.no_grad()
def temperatures(model: Any) -> dict[str, Tensor]:
    """By layer, what multiplies the logits of each head [H], over what it started at: 1 has not moved, more is sharper.

    Plain attention has head_dim ** -0.5 throughout, where these start.
    """
    layers = _with_temperatures(model)
    if not layers:
        raise ZooError(f'{type(model).__name__} has no temperatures: {no_temperatures(model)}.')
    return {layer.name: layer.attention.temperature.float().cpu() / _start(layer.attention) for layer in layers}


def _start(attn: Any) -> float:
    return getattr(attn, 'scale', attn.head_dim ** -0.5)


# -- positions ---------------------------------------------------------------------------------------------------------
def no_positions(model: Any) -> str:
    """Why a model has no table of positions; '' where it has."""
    if not block_layers(model):
        return 'its tokens are not known'
    if getattr(model, 'pos_embed', None) is None:
        return 'nothing is added to its tokens'
    return ''


@torch.no_grad()
def position_similarity(model: Any) -> Tensor:
    """Cosine of each position's row of the table with every other [rows, columns, rows, columns]."""
    why = no_positions(model)
    if why:
        raise ZooError(f'{type(model).__name__} has no table of positions: {why}.')
    rows, cols = position_grid(model)
    table = F.normalize(model.pos_embed[0, -rows * cols:].float().cpu(), dim=1)
    return (table @ table.t()).view(rows, cols, rows, cols)


def position_grid(model: Any) -> tuple[int, int]:
    return model.patch_embed.grid_size if hasattr(model, 'patch_embed') else model.grid_size
