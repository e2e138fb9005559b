"""For `torch.hub`: every model of the zoo, from a clone, without an installation.

torch.hub.load('OWNER/REPO', 'cct_7_3x1', pretrained=True)
torch.hub.load('OWNER/REPO', 'cct_7_3x1', pretrained=True, pretrained_cfg='shi_c100_300e', num_classes=37)

torch.hub takes each callable here whose name has no leading underscore for a model.
"""
from collections.abc import Callable as _Callable
from typing import Any as _Any

import timm as _timm
from timm.models import get_arch_pretrained_cfgs as _get_arch_pretrained_cfgs
from torch import nn as _nn

import tinyvit_zoo as _tinyvit_zoo

dependencies = ['torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors']


def _entrypoint(name: str) -> _Callable[..., _nn.Module]:
    def create(pretrained: bool = False, **kwargs: _Any) -> _nn.Module:
        return _timm.create_model(name, pretrained=pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = _docstring(name)
    return create


def _docstring(name: str) -> str:
    cfgs = list(_get_arch_pretrained_cfgs(name).values())
    channels, height, width = cfgs[0].input_size
    trained = [f"'{cfg.tag}'" for cfg in cfgs if cfg.has_weights]
    tags = f'{", ".join(trained)}; the first is the default' if trained else 'none yet'
    return (f'{name}, for images of {channels} x {height} x {width}.\n\n'
            f'Paper: {cfgs[0].paper_name}, {cfgs[0].paper_ids}\n'
            f'Weights, for pretrained=True (pretrained_cfg=TAG): {tags}\n'
            f'Further arguments are those of timm.create_model.')


globals().update({name: _entrypoint(name) for name in _tinyvit_zoo.list_models()})
