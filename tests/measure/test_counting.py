"""Counts are closed forms and the authors' figures, whichever way a model runs; memory is what a net must hold."""
import itertools
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tinyvit_zoo
from tinyvit_zoo import ZooError
from tinyvit_zoo.measure import counting
from tinyvit_zoo.measure.counting import count, fvcore_macs, peak_memory
from tinyvit_zoo.models import CompactTransformer, LocalViT

AUTHORS = {  # at their size and classes, in millions
    'plain_vit': 187.72, 'sl_vit': 190.08, 'plain_vit_64': 189.52, 'sl_vit_64': 198.96,
    'plain_cait': 595.70, 'sl_cait': 598.05, 'plain_cait_64': 597.50, 'sl_cait_64': 606.94,
    'plain_pit': 274.39, 'sl_pit': 317.87, 'plain_pit_64': 275.35, 'sl_pit_64': 322.37,
    'plain_swin': 240.95, 'sl_swin': 279.88, 'plain_swin_64': 241.90, 'sl_swin_64': 284.37,
    'plain_t2t': 457.20, 'sl_t2t': 462.51, 'plain_t2t_64': 636.35, 'sl_t2t_64': 657.58,
    'ssl_vit': 187.7, 'ssl_swin': 241.0, 'ssl_cait': 504.8,
}
ONE_EACH = [  # shallow: what counts is each way to attend
    ('cct_2_3x2', {}), ('vit_lite_2_4', {}), ('sl_vit', dict(depth=2)), ('sl_cait', dict(depth=2)),
    ('sl_pit', dict(depths=(1, 1, 1))), ('sl_swin', dict(depths=(1, 2, 1))), ('sl_t2t', dict(depth=2)),
    ('ssl_swin', dict(depths=(1, 2, 1), img_size=24)), ('mae_vit_c10', dict(depth=2)),
    ('mae_lite_vit_tiny_rpe', dict(depth=2)),
]


BATCH = 16  # from here on locality attention takes our operator; the CPU kernel of torch has no flop formula


def unfused(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, 'fused_attn'):
            module.fused_attn = False
    return model


# -- multiply-adds -----------------------------------------------------------------------------------------------------
def body(tokens: int, dim: int, depth: int, ratio: float, inner: int) -> int:
    """Blocks of attention of width `inner` and an MLP."""
    attention = 3 * dim * inner * tokens + 2 * tokens ** 2 * inner + inner * dim * tokens
    return depth * (attention + 2 * int(ratio * dim) * dim * tokens)


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('height, width, classes, batch', [(32, 32, 10, 1), (64, 24, 7, 3), (32, 48, 0, 2)])
def test_vit_by_hand(height: int, width: int, classes: int, batch: int, fused: bool) -> None:
    size, dim, depth = (height, width), 24, 3
    model = LocalViT(size, 3, classes, patch_size=4, embed_dim=dim, depth=depth, num_heads=4, spt=False, lsa=False,
                     device='meta')
    patches = height * width // 16
    macs = patches * 48 * dim + body(patches + 1, dim, depth, 2, dim) + dim * classes
    assert count(model if fused else unfused(model), batch=batch).macs == batch * macs


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('size, chans, classes, batch', [(32, 3, 10, 1), (40, 1, 5, 4)])
def test_cct_by_hand(size: int, chans: int, classes: int, batch: int, fused: bool) -> None:
    dim, depth = 32, 2
    model = CompactTransformer(size, chans, classes, kernel_size=3, num_convs=2, embed_dim=dim, depth=depth,
                               num_heads=2, mlp_ratio=1, device='meta')
    tokens = (size // 4) ** 2
    convs = size ** 2 * 9 * chans * 64 + (size // 2) ** 2 * 9 * 64 * dim
    pool = tokens * dim + tokens * dim  # a score for each token, and the weighted sum
    macs = convs + body(tokens, dim, depth, 1, dim) + pool + dim * classes
    assert count(model if fused else unfused(model), batch=batch).macs == batch * macs


@pytest.mark.parametrize('name', AUTHORS)
def test_the_authors_figures(name: str) -> None:
    model = timm.create_model(name, num_classes=200 if name.endswith('_64') else 10, device='meta')
    digits = 0.06 if name.startswith('ssl') else 0.006  # as many as they are known by
    assert count(model).macs / 1e6 == pytest.approx(AUTHORS[name], abs=digits)


@pytest.mark.parametrize('name, kwargs', ONE_EACH)
def test_the_same_by_every_path(name: str, kwargs: dict[str, Any]) -> None:
    fused = count(timm.create_model(name, device='meta', **kwargs))
    assert count(unfused(timm.create_model(name, device='meta', **kwargs))) == fused
    model = timm.create_model(name, **kwargs)
    assert count(model) == fused
    assert count(unfused(model), batch=3).activations == 3 * fused.activations


@pytest.mark.parametrize('name, kwargs', [('cct_2_3x2', {}), ('sl_vit', {'depth': 2})])
def test_a_training_step_on_a_cpu_counts_the_attention(name: str, kwargs: dict[str, Any]) -> None:
    """By operators of ours, seven products where the plain formula takes six: the logits once more."""
    def step(model: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(model.train()(torch.zeros(BATCH, 3, 32, 32)), torch.zeros(BATCH).long()).backward()
        return counter.get_total_flops() // 2

    model = timm.create_model(name, **kwargs)
    layers = [m for m in model.modules() if hasattr(m, 'fused_attn')]
    tokens = 65 if name == 'sl_vit' else 64
    one_product = BATCH * tokens ** 2 * sum(m.num_heads * m.head_dim for m in layers)
    assert step(model) - step(unfused(timm.create_model(name, **kwargs))) == one_product


@pytest.mark.parametrize('name, kwargs', ONE_EACH)
def test_fvcore_agrees_but_for_norms(name: str, kwargs: dict[str, Any]) -> None:
    pytest.importorskip('fvcore')
    model = timm.create_model(name, **kwargs)
    fused, macs = fvcore_macs(model), count(model).macs
    plain = fvcore_macs(unfused(model))
    assert fused['layer_norm'] > 0 and sum(fused.values()) - fused['layer_norm'] == macs
    assert sum(plain.values()) - plain['layer_norm'] == macs


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name, kwargs', ONE_EACH)
def test_a_gpu_counts_the_same(name: str, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    model = timm.create_model(name, **kwargs)
    assert count(model.to('cuda', dtype)) == count(timm.create_model(name, device='meta', **kwargs))


# -- parameters, sizes, what is left behind ----------------------------------------------------------------------------
def test_parts_and_frozen_parameters() -> None:
    model = timm.create_model('cct_2_3x2', device='meta')
    model.tokenizer.requires_grad_(False)
    found = count(model)
    tokenizer = 9 * 3 * 64 + 9 * 64 * 128
    assert found.parts['tokenizer'] == counting.Part(tokenizer, 0, 32 ** 2 * 9 * 3 * 64 + 16 ** 2 * 9 * 64 * 128)
    assert found.params == 283_723 and found.frozen == tokenizer and found.parts['pos_embed'].params == 64 * 128
    for field in ('params', 'trainable', 'macs'):
        assert sum(getattr(part, field) for part in found.parts.values()) == getattr(found, field)
    assert count(timm.create_model('cct_7_3x1_sine', device='meta')).buffers == 256 * 256


@pytest.mark.parametrize('name', tinyvit_zoo.list_models())
def test_every_model_is_counted_at_its_own_size(name: str) -> None:
    model = timm.create_model(name, device='meta')
    found = count(model)
    assert found.input_size == model.pretrained_cfg['input_size'] and found.macs > found.params / 2
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.parts['head'].macs == (found.parts['head'].params - model.num_classes if model.num_classes else 0)


def test_sizes_given_or_built_for() -> None:
    model = timm.create_model('ssl_vit', img_size=64, in_chans=1, device='meta')
    assert count(model).input_size == (1, 64, 64)
    assert count(model, 32).input_size == (1, 32, 32) and count(model, (16, 32)).input_size == (1, 16, 32)
    with pytest.raises(ZooError, match='This model takes 32 x 32 pixels'):
        count(timm.create_model('cct_2_3x2', device='meta'), 48)
    with pytest.raises(ZooError, match='Linear has no default input size'):
        count(nn.Linear(3, 3))
    with pytest.raises(ZooError, match='cannot take 1 x 4 x 32 x 32'):
        count(timm.create_model('resnet18', device='meta'), (4, 32, 32))


def test_the_model_is_left_as_it_was() -> None:
    model = timm.create_model('cct_2_3x2').train()
    model.norm.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    count(model)
    peak_memory(model, train=True)
    assert model.training and model.blocks.training and not model.norm.training
    assert all(p.grad is None and p.device.type == 'cpu' for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


# -- memory ------------------------------------------------------------------------------------------------------------
class Chain(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.flatten(1))


def test_memory_by_hand() -> None:
    model, batch = Chain(12, 100, 300, 7), 5
    weights = 12 * 100 + 100 * 300 + 300 * 7
    assert peak_memory(model, (3, 2, 2), batch) == 4 * (weights + batch * (12 + 100 + 300))
    # worst at the middle weight's gradient: beside it that of the last one, the map in, out, the sum, and the gradients
    # of the sum and of both maps; the map that follows is gone by then
    held = weights + 300 * 7 + 100 * 300 + batch * (12 + 100 + 7 + 300 + 100) + 2
    assert peak_memory(model, (3, 2, 2), batch, train=True) == 4 * held
    assert peak_memory(model.double(), (3, 2, 2), batch) == 8 * (weights + batch * (12 + 100 + 300))


@pytest.mark.parametrize('name', ['cct_7_3x1', 'sl_vit'])
def test_memory_grows_with_the_batch_and_without_fused_attention(name: str) -> None:
    model = timm.create_model(name, device='meta')
    for train in (False, True):
        eight, sixteen, more = (peak_memory(model, batch=b, train=train) for b in (8, 16, 24))
        assert more - sixteen == pytest.approx(sixteen - eight, rel=0.01)
        assert peak_memory(unfused(timm.create_model(name, device='meta')), batch=8, train=train) > eight


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', ['cct_7_3x1', 'sl_vit', 'mae_vit_c10'])
def test_memory_is_about_what_a_gpu_allocates(name: str, train: bool) -> None:
    model = timm.create_model(name).cuda().train(train)
    x = torch.zeros(128, *model.pretrained_cfg['input_size'], device='cuda')
    torch.cuda.reset_peak_memory_stats()
    with torch.set_grad_enabled(train):
        out = model(x)
        if train:
            out.sum().backward()
    assert torch.cuda.max_memory_allocated() == pytest.approx(peak_memory(model, batch=128, train=train), rel=0.2)
