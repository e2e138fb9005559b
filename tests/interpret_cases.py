"""Small models of every family, for the tests of what looks inside them."""
from typing import Any

import timm
import torch
from torch import Tensor

import tinyvit_zoo  # noqa: F401

SMALL: dict[str, dict[str, Any]] = {  # every family, on 12 x 16 pixels and 3 x 4 patches where it has them
    'vit_lite_2_4': {}, 'cvt_2_4': {}, 'cct_2_3x2': {}, 'sl_vit': dict(depth=2), 'plain_vit': dict(depth=2),
    'sl_t2t': dict(depth=2), 'sl_pit': dict(depths=(1, 1, 1)), 'plain_pit': dict(depths=(1, 1, 1)),
    'sl_swin': dict(depths=(2, 1, 1)), 'plain_swin': dict(depths=(2, 1, 1)), 'ssl_swin': dict(depths=(2, 1, 1)),
    'sl_cait': dict(depth=2), 'plain_cait': dict(depth=2), 'ssl_cait': dict(depth=2), 'ssl_vit': dict(depth=2),
    'mae_vit_c10': dict(depth=2, patch_size=4), 'mae_lite_vit_tiny_rpe': dict(depth=2, patch_size=4),
    'vit_tiny_patch16_224': dict(depth=2, patch_size=4), 'cait_xxs24_224': dict(depth=2, patch_size=4),
    'deit_tiny_distilled_patch16_224': dict(depth=2, patch_size=4),
}


def create(name: str, **kwargs: Any) -> Any:
    model = timm.create_model(name, **{'img_size': (12, 16), **SMALL[name], **kwargs}).double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # as trained ones: no two heads alike, logits of some size
            if key.endswith(('temperature', 'bias_table', 'cls_token', 'pos_embed', 'proj_l.bias')):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def batch(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 12, 16, dtype=torch.float64)
