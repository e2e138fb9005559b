"""The linear probe: logistic regression on features of a frozen encoder."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.splits import draw

STRENGTHS = (1., 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)      # of the L2 penalty, the strongest first
_HELD_OUT = 0.2     # share of the training features that the strength is chosen on
_STEPS = 100
_DRAW = 7           # what a seed is used for


def probe(
        train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, *, num_classes: int,
        seed: int = 0,
) -> dict[str, float]:
    """{'top1' in percent, 'l2'}: features [N, D] standardised, the mean cross-entropy and l2 / 2 |W|^2 minimised.

    The strength is chosen on a fifth of the training features, every class in its proportion, and all of them are then
    fitted with it. The features that are judged choose nothing.
    """
    held = draw(train_labels.cpu(), round(_HELD_OUT * len(train_labels)), seed, _DRAW).to(train_labels.device)
    strength = STRENGTHS[len(STRENGTHS) // 2]
    if held.any():      # a set with one image of each class has none to choose by
        fitted = _path(train_features[~held], train_labels[~held], num_classes, STRENGTHS)
        scores = [_top1(weights, train_features[held], train_labels[held]) for weights in fitted]
        strength = STRENGTHS[scores.index(max(scores))]     # of equal ones the strongest
    path = STRENGTHS[:STRENGTHS.index(strength) + 1]
    weights = _path(train_features, train_labels, num_classes, path)[-1]
    return {'top1': _top1(weights, features, labels), 'l2': strength}


def _path(features: Tensor, labels: Tensor, num_classes: int, strengths: tuple[float, ...]) -> list[Tensor]:
    """Weights [D + 1, C] for raw features at each strength, from the strongest on: each begins where the last ended."""
    deviation, mean = torch.std_mean(features.double(), 0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)   # a constant says nothing
    x = ((features - mean) / deviation).float()
    found, weights = [], x.new_zeros(x.shape[1] + 1, num_classes)
    for strength in strengths:
        weights = _fit(x, labels, weights, strength)
        scaled = weights[:-1].double() / deviation[:, None]
        found.append(torch.cat([scaled, weights[-1:] - mean[None] @ scaled]))
    return found


def _fit(x: Tensor, labels: Tensor, start: Tensor, strength: float) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_STEPS, history_size=20, tolerance_grad=1e-5, tolerance_change=1e-7,
        line_search_fn='strong_wolfe')

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.addmm(weights[-1], x, weights[:-1])
        loss = F.cross_entropy(logits, labels) + strength / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def _top1(weights: Tensor, features: Tensor, labels: Tensor) -> float:
    logits = features.double() @ weights[:-1] + weights[-1]
    return 100 * logits.argmax(1).eq(labels).double().mean().item()
