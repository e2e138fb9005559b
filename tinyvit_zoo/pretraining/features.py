"""What the methods that compare whole images need of an encoder: one vector an image, at the sizes of its views."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import ZooError
from ..models import take_any_size


def feature_width(encoder: Any) -> int:
    """Length of the pooled features; ZooError for a model that has a classifier, or features that are not pooled."""
    if encoder.num_classes:
        raise ZooError(f'The encoder has a classifier of {encoder.num_classes} classes, and a pre-training knows none: '
                       f'create it with num_classes=0.')
    if not encoder.global_pool:
        raise ZooError("The encoder's features are not pooled (global_pool=''), and one vector an image is compared: "
                       "take global_pool='avg', for one.")
    return int(encoder.head_hidden_size)


def require_sizes(encoder: Any, sizes: Sequence[tuple[int, int]]) -> None:
    """Have the encoder take views of these sizes; ZooError that says why where it cannot."""
    take_any_size(encoder)
    weight = next(encoder.parameters())
    training = encoder.training
    encoder.eval()
    for height, width in sizes:
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, encoder.in_chans, height, width, device=weight.device, dtype=weight.dtype))
        except (ZooError, AssertionError, RuntimeError) as e:
            reason = str(e).splitlines()[0]
            raise ZooError(f'{type(encoder).__name__} does not take views of {height} x {width} pixels ({reason}): '
                           f'pre-train with larger images, without local views, or by moco_v3.') from e
    encoder.train(training)
