"""What every way to pre-train is to the training: an encoder, the loss of a batch of views, and what follows a step."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Method(nn.Module):
    """`forward(*views, *drawn)` is the loss. What is not the encoder's is gone when the pre-training is over."""
    encoder: Any
    whole_batches = False       # the images of a batch are compared, so that its parts would not do

    @classmethod
    def check_encoder(cls, encoder: Any) -> None:
        """ZooError for a kind of encoder that the method has no use for, whatever its arguments and weights."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What is random in the loss itself, for `count` images, a row each: masks, for one."""
        return ()

    def before_step(self, progress: float) -> None:
        """Between the backward pass and the optimizer. `progress` goes from 0 to 1 over the training."""

    def after_step(self, progress: float) -> None:
        """Teachers, centres."""

    def trouble(self) -> str:
        """What shows, behind a step, that nothing is learned any more; '' where nothing does."""
        return ''

    def kept(self) -> Any:
        """The encoder that the pre-training is for."""
        return self.encoder
