"""Features of a frozen encoder: their k-NN accuracy, their spread, and logistic regression on them."""
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.splits import draw
from ..runtime.world import World, autocast

_CHUNK = 1 << 24        # similarities held at once
STRENGTHS = (1., 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)      # of the L2 penalty of the probe, the strongest first
_HELD_OUT = 0.2         # share of the training features that the penalty is chosen on
_DRAW = 7               # keeps this draw apart from others with the same seed


@torch.no_grad()
def extract(model: Any, batches: Iterable[tuple[Tensor, Tensor]], world: World,
            dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return the classifier's input [N, D] (float32) and labels [N] of all batches, on every process, in eval mode."""
    training = model.training
    model.eval()
    pairs: list[tuple[Tensor, Tensor]] = []
    for images, labels in batches:
        with autocast(world.device, dtype):
            features = model.forward_head(model.forward_features(images), pre_logits=True)
        pairs.append((features.flatten(1).float(), labels))
    model.train(training)
    if world.size > 1:
        pairs = [(x.to(world.device), y.to(world.device)) for part in world.gather(
            [(x.cpu(), y.cpu()) for x, y in pairs]) for x, y in part]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@torch.no_grad()
def knn(train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, k: int = 20,
        temperature: float = 0.07, *, num_classes: int) -> float:
    """Return the top-1 in percent of DINO's k-NN classifier (arXiv:2104.14294): votes are exp(cosine / temperature)."""
    bank, queries = F.normalize(train_features, dim=1), F.normalize(features, dim=1)
    k, correct = min(k, len(bank)), torch.zeros((), dtype=torch.int64, device=features.device)
    step = max(1, _CHUNK // len(bank))
    for x, y in zip(queries.split(step), labels.split(step), strict=True):
        similarity, index = (x @ bank.T).topk(k)                                            # [B, k]
        weights = ((similarity - 1) / temperature).exp()        # the largest similarity is 1: nothing overflows
        votes = weights.new_zeros(len(x), num_classes).scatter_add_(1, train_labels[index], weights)
        correct += votes.argmax(1).eq(y).sum()
    return 100 * correct.item() / len(labels)


@torch.no_grad()
def spread(features: Tensor) -> float:
    """Return the deviation of L2-normalised features over the images: 1 if even over the sphere, 0 for a collapse."""
    return F.normalize(features, dim=1).std(0, correction=0).mean().item() * features.shape[1] ** 0.5


def probe(train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, *, num_classes: int,
          seed: int = 0) -> dict[str, float]:
    """Return {'top1' in percent, 'l2'} of a classifier that minimises mean cross-entropy + l2 / 2 |W|^2."""
    # features [N, D] are standardised; l2 is chosen on a stratified fifth, the classifier then fitted to all
    held = draw(train_labels.cpu(), round(_HELD_OUT * len(train_labels)), seed, _DRAW).to(train_labels.device)
    strength = STRENGTHS[len(STRENGTHS) // 2]
    if held.any():      # false for one image a class
        fitted = _path(train_features[~held], train_labels[~held], num_classes, STRENGTHS)
        scores = [_top1(weights, train_features[held], train_labels[held]) for weights in fitted]
        strength = STRENGTHS[scores.index(max(scores))]     # the strongest of equals
    path = STRENGTHS[:STRENGTHS.index(strength) + 1]
    weights = _path(train_features, train_labels, num_classes, path)[-1]
    return {'top1': _top1(weights, features, labels), 'l2': strength}


def _path(features: Tensor, labels: Tensor, num_classes: int, strengths: tuple[float, ...]) -> list[Tensor]:
    """Return weights [D + 1, C] for raw features at each strength, each fit started from the one before."""
    deviation, mean = torch.std_mean(features.double(), 0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)   # drops constants
    x = ((features - mean) / deviation).float()
    path, weights = [], x.new_zeros(x.shape[1] + 1, num_classes)
    for strength in strengths:
        weights = _fit(x, labels, weights, strength)
        scaled = weights[:-1].double() / deviation[:, None]
        path.append(torch.cat([scaled, weights[-1:] - mean[None] @ scaled]))
    return path


def _fit(x: Tensor, labels: Tensor, start: Tensor, strength: float) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, history_size=20, tolerance_grad=1e-5, tolerance_change=1e-7,
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
