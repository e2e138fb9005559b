"""CKA and HSIC against their definitions; the similarity of positions."""


import pytest
import timm
import torch
from interpret_cases import SMALL, batch, create
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.interpret.attention import attention_layers
from tinyvit_zoo.interpret.similarity import (
    feature_names,
    gram,
    position_similarity,
    ratio,
    see_features,
    similarity,
    unbiased_hsic,
)


def hsic_by_definition(x: Tensor, y: Tensor) -> float:
    """The U-statistic: the mean over all four different images of the products that measure dependence."""
    k, h = x @ x.t(), y @ y.t()
    n, total, count = len(x), 0., 0
    for i in range(n):
        for j in set(range(n)) - {i}:
            for q in set(range(n)) - {i, j}:
                for r in set(range(n)) - {i, j, q}:
                    total += float(k[i, j] * (h[i, j] + h[q, r] - 2 * h[i, q]))
                    count += 1
    return total / count


def test_hsic_is_the_unbiased_estimate() -> None:
    x, y = torch.randn(6, 3).double() + 4, torch.randn(6, 5).double() - 2
    found = unbiased_hsic(torch.stack([gram(x), gram(y)]), torch.stack([gram(x), gram(y)]))
    expected = torch.tensor([[hsic_by_definition(a, b) for b in (x, y)] for a in (x, y)])
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ZooError, match='3 images, expected 4 or more'):
        unbiased_hsic(gram(x[:3])[None], gram(x[:3])[None])


class Features(nn.Module):
    """Three layers of features: as they come, turned and scaled, and of another draw."""

    def __init__(self, collapsed: bool = False) -> None:
        super().__init__()
        self.turn = torch.linalg.qr(torch.randn(8, 8))[0]
        self.collapsed = collapsed

    def forward_intermediates(self, x: Tensor, intermediates_only: bool) -> list[Tensor]:
        last = torch.full((len(x), 4), 7.3) if self.collapsed else x[:, 8:]
        return [x[:, :8], 3 * x[:, :8] @ self.turn + 5, last]


def test_cka_of_features_that_are_turned_scaled_and_unrelated() -> None:
    x = torch.randn(20, 64, 16)
    found = similarity(Features(), x)['aa']
    torch.testing.assert_close(found.diagonal(), torch.ones(3).double())
    assert found[0, 1] == pytest.approx(1, abs=1e-5) and abs(found[0, 2]) < 0.02  # a biased estimate has 0.11
    shared = torch.cat([x[..., :8], x[..., :4], x[..., 8:12]], 2)  # half of the last layer's features are the first's
    assert similarity(Features(), shared)['aa'][0, 2] == pytest.approx(0.5, abs=0.05)
    both = similarity(Features(), x, Features(), x)
    assert both['ab'].shape == (3, 3) and both['ab'][0, 0] == pytest.approx(1, abs=1e-5)


def test_hsic_is_averaged_before_the_ratio() -> None:
    x = torch.randn(2, 8, 16)
    x[1] *= 10
    model = Features()
    sums = 0.
    for part in x:
        grams = torch.stack([gram(f) for f in model.forward_intermediates(part, True)])
        sums = sums + unbiased_hsic(grams, grams)
    expected = sums / (sums.diagonal()[:, None] * sums.diagonal()).sqrt()
    torch.testing.assert_close(similarity(model, x)['aa'], expected)


def test_no_similarity_is_nan() -> None:
    """Collapsed features, and a self-similarity that chance made negative, are like nothing: 0."""
    found = similarity(Features(collapsed=True), torch.randn(2, 8, 16))['aa']
    assert torch.isfinite(found).all() and not found[2].any() and not found[:, 2].any()
    cross = torch.tensor([[0.5, -0.1], [0.2, -0.3]])
    torch.testing.assert_close(
        ratio(cross, torch.tensor([4., -1.]), torch.tensor([1., 0.25])), torch.tensor([[0.25, -0.1], [0., 0.]]))


@torch.no_grad()
def test_layers_of_two_models_are_compared_on_the_same_images() -> None:
    a, b = create('vit_lite_2_4'), create('sl_swin')
    x = [batch(8), batch(8)]
    found = similarity(a, x, b, x)
    assert found['aa'].shape == (2, 2) and found['ab'].shape == (2, 4) and found['bb'].shape == (4, 4)
    swapped = similarity(b, x, a, x)
    torch.testing.assert_close(swapped['ab'], found['ab'].t())
    shuffled = similarity(a, x, b, [part.flip(0) for part in x])
    assert shuffled['ab'].mean() < found['ab'].mean()
    assert feature_names(timm.create_model('resnet18')) == ['act1', 'layer1', 'layer2', 'layer3', 'layer4']


# -- features ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', SMALL)
@torch.no_grad()
def test_features_are_the_patch_tokens_behind_each_block(name: str) -> None:
    model, x = create(name), batch()
    found: dict[int, Tensor] = {}
    see_features(model, x, found.__setitem__)
    names = feature_names(model)
    layers = [layer for layer in attention_layers(model) if not layer.class_only]
    assert len(found) == len(names) == len(layers)
    for index, layer in enumerate(layers):
        assert found[index].flatten(1, -2).shape[1] == layer.grid[0] * layer.grid[1]
    if name in ('vit_lite_2_4', 'cct_2_3x2', 'sl_vit', 'vit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224'):
        for index, expected in enumerate(model.forward_intermediates(x, indices=2, intermediates_only=True)):
            torch.testing.assert_close(found[index], expected.flatten(2).transpose(1, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# -- positions ---------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_positions_alike_are_found_alike() -> None:
    for name in ('vit_lite_2_4', 'cvt_2_4', 'mae_vit_c10', 'ssl_cait', 'sl_t2t'):
        model = create(name)
        rows, cols = attention_layers(model)[-1].grid
        table = torch.zeros(1, *model.pos_embed.shape[1:])
        for i in range(rows * cols):
            table[0, i - rows * cols, i % cols] = i + 1.   # a direction for each column
        model.pos_embed.data = table
        found = position_similarity(model)
        same = torch.eye(cols)[None, :, None].expand(rows, cols, rows, cols)
        torch.testing.assert_close(found, same)
    with pytest.raises(ZooError, match='no positions are added'):
        position_similarity(create('ssl_swin'))
