"""Encoders for the methods that compare whole images: one vector an image, at the sizes of its views."""
from __future__ import annotations

from typing import Any

import torch

from ..errors import ZooError
from ..models import take_any_size


def feature_width(encoder: Any) -> int:
    """Return the length of the pooled features; ZooError for a model with a classifier or unpooled features."""
    if encoder.num_classes:
        raise ZooError(f'The encoder has a classifier of {encoder.num_classes} classes, and a pre-training knows none: '
                       f'create it with num_classes=0.')
    if not encoder.global_pool:
        raise ZooError("The encoder's features are not pooled (global_pool=''), and one vector an image is compared: "
                       "take global_pool='avg', for one.")
    return int(encoder.head_hidden_size)


def require_size(encoder: Any, size: tuple[int, int]) -> None:
    """Let the encoder take images of this size beside its own; ZooError with the reason where it cannot."""
    weight, training = next(encoder.parameters()), encoder.training
    try:
        take_any_size(encoder)
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, encoder.in_chans, *size, device=weight.device, dtype=weight.dtype))
    except (ZooError, AssertionError, RuntimeError) as e:
        reason = str(e).splitlines()[0]
        raise ZooError(f'{type(encoder).__name__} does not take local views of {size[0]} x {size[1]} pixels: {reason} '
                       f'Or: larger images, no local views, or moco_v3, which has none.') from e
    encoder.train(training)
