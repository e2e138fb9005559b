"""Encoders run on a subset of their tokens, and what passes through their blocks can be read."""
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from parity import fill, images, vit_forward, vit_shapes, vit_tokens
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.models import attention_logits, encode, list_models, record
from tinyvit_zoo.models.mae_lite import checkpoint_filter_fn

ENCODERS = {  # every kind of plain encoder, small
    'mae_vit_c10': dict(img_size=(9, 12), depth=3), 'mae_lite_vit_tiny': dict(img_size=(48, 64), depth=3),
    'mae_lite_vit_tiny_rpe': dict(img_size=(48, 64), depth=3), 'mae_lite_vit_small': dict(img_size=(48, 64), depth=2),
    'vit_lite_2_4': dict(img_size=(12, 16)), 'cvt_2_4': dict(img_size=(12, 16)),
    'ssl_vit': dict(img_size=(12, 16), depth=3),
    'sl_vit': dict(img_size=(12, 16), depth=3), 'plain_vit': dict(img_size=(12, 16), depth=3),
}
PATCHES = 12


def create(name: str, **kwargs: Any) -> nn.Module:
    return timm.create_model(name, **{**ENCODERS[name], **kwargs}).double().eval()


def batch(model: nn.Module, count: int = 3) -> Tensor:
    size = model.img_size if hasattr(model, 'img_size') else model.patch_embed.img_size
    return torch.randn(count, 3, *size, dtype=torch.float64)


def drawn(count: int, kept: int) -> Tensor:
    return torch.rand(count, PATCHES).argsort(1)[:, :kept]


@pytest.mark.parametrize('name', ENCODERS)
@torch.no_grad()
def test_all_tokens_give_the_numbers_of_the_forward_pass(name: str) -> None:
    """Bit for bit where nothing is left out; and in another order, for no layer knows of an order."""
    model = create(name)
    x, prefix = batch(model), model.num_prefix_tokens
    features = model.forward_features(x)
    assert torch.equal(encode(model, x), features)
    torch.testing.assert_close(encode(model, x, torch.arange(PATCHES).expand(3, -1)), features, rtol=0, atol=1e-12)
    order = drawn(3, PATCHES)
    shuffled = encode(model, x, order)
    for image in range(3):
        torch.testing.assert_close(shuffled[image, prefix:], features[image, prefix:][order[image]])
        torch.testing.assert_close(shuffled[image, :prefix], features[image, :prefix])


@pytest.mark.parametrize('name', ENCODERS)
@torch.no_grad()
def test_what_is_left_out_has_no_effect(name: str) -> None:
    """Each image by itself has its tokens, and noise on the patches that are left out changes nothing."""
    model = create(name)
    x, keep = batch(model), drawn(3, 5)
    tokens = encode(model, x, keep)
    assert tokens.shape == (3, model.num_prefix_tokens + 5, model.embed_dim)
    for image in range(3):
        alone = encode(model, x[image:image + 1], keep[image:image + 1])
        torch.testing.assert_close(alone[0], tokens[image])
    if name != 'sl_vit':  # whose patches overlap with their neighbours'
        height, width = x.shape[2] // 3, x.shape[3] // 4
        for image in range(3):
            for patch in set(range(PATCHES)) - set(keep[image].tolist()):
                row, col = patch // 4 * height, patch % 4 * width
                x[image, :, row:row + height, col:col + width] = torch.randn(3, height, width)
        torch.testing.assert_close(encode(model, x, keep), tokens)


@pytest.mark.parametrize('name', ['mae_lite_vit_tiny', 'mae_lite_vit_tiny_rpe'])
@torch.no_grad()
def test_a_subset_gives_the_plain_definitions_numbers(name: str) -> None:
    state = {key: fill(key, shape) for key, shape in vit_shapes(
        (48, 64), 16, 0, 192, 3, 4, heads=12 if name.endswith('rpe') else 0, norm='norm').items()}
    model = create(name, num_classes=0, global_pool='token')
    model.load_state_dict(checkpoint_filter_fn(state, model))
    x, keep = images([3, 3, 48, 64]), drawn(3, 4)
    torch.testing.assert_close(encode(model, x, keep), vit_tokens(x, state, 12, F.gelu, keep), rtol=0, atol=1e-9)
    torch.testing.assert_close(encode(model, x)[:, 0], vit_forward(x, state, 12), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name', ['mae_vit_c10', 'mae_lite_vit_tiny_rpe', 'sl_vit'])
def test_gradients_checkpointing_and_autocast(name: str) -> None:
    model = create(name, num_classes=0).float().train()
    x, keep, grads = batch(model).float(), drawn(3, 5), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        encode(model, x, keep).square().sum().backward()
        grads.append([p.grad.clone() for p in model.blocks.parameters()])
    torch.testing.assert_close(grads[0], grads[1])
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(encode(model, x, keep)).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mae_vit_c10', 'mae_lite_vit_tiny_rpe', 'sl_vit'])
@torch.no_grad()
def test_masking_compiles_to_one_graph(name: str) -> None:
    model = create(name).float()
    x, keep = batch(model).float(), drawn(3, 5)
    torch.compiler.reset()
    compiled = torch.compile(encode, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(model, x, keep), encode(model, x, keep), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name, words', [
    ('cct_2_3x2', 'cannot be masked'), ('sl_cait', 'cannot be masked'), ('sl_t2t', 'cannot be masked'),
    ('ssl_cait', 'cannot be masked'), ('ssl_swin', 'not a plain encoder'), ('sl_pit', 'not a plain encoder'),
    ('resnet18', 'not a plain encoder'),
])
def test_models_that_cannot_be_masked_are_refused(name: str, words: str) -> None:
    model = timm.create_model(name, img_size=32) if name in list_models() else timm.create_model(name)
    with pytest.raises(ZooError, match=words) as error:
        encode(model, torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, dtype=torch.long))
    assert r'\n' not in str(error.value)


def test_wrong_indices_are_refused() -> None:
    model = create('mae_vit_c10')
    for keep in (torch.zeros(3, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long), torch.ones(3, PATCHES)):
        with pytest.raises(ZooError, match=r'expected \[3, K\] of torch.int64'):
            encode(model, batch(model), keep)
    for index in (-1, PATCHES):     # -1 is not the class token
        with pytest.raises((IndexError, RuntimeError), match='out of bounds'):
            encode(model, batch(model), torch.full((3, 2), index))


# -- looking inside ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', [*ENCODERS, 'cct_2_3x2'])
@torch.no_grad()
def test_recorded_logits_are_those_that_attention_uses(name: str) -> None:
    """softmax(logits) v, by hand, is what the attention gave out; with masked tokens too."""
    model = timm.create_model(name, img_size=32).double().eval() if 'cct' in name else create(name)
    x = batch(model)
    attn = model.blocks[1].attn if hasattr(model.blocks[1], 'attn') else model.blocks[1].self_attn
    for keep in (None, drawn(3, 5)) if 'cct' not in name else (None,):
        given: dict[str, Tensor] = {}
        handle = attn.register_forward_hook(lambda m, args, out, given=given: given.update(x=args[0], out=out))
        with record(model, inputs=[0, 1], outputs=[0, -1], logits=[1]) as seen:
            tokens = encode(model, x, keep)
        handle.remove()
        assert torch.equal(seen.inputs[1], seen.outputs[0])
        torch.testing.assert_close(model.norm(seen.outputs[-1]), tokens)
        count = tokens.shape[1]
        v = attn.qkv(given['x']).unflatten(2, (3, attn.num_heads, -1))[:, :, 2].transpose(1, 2)
        logits = seen.logits[1]
        assert logits.shape == (3, attn.num_heads, count, count)
        out = attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, given['out'])
    if name == 'sl_vit':
        assert (seen.logits[1].softmax(-1).diagonal(dim1=2, dim2=3) == 0).all()


def test_recorded_tensors_carry_gradients_and_hooks_go() -> None:
    student, teacher = create('mae_lite_vit_tiny_rpe'), create('mae_lite_vit_tiny')
    x, keep = batch(student), drawn(3, 5)
    with record(student, logits=[-1]) as ours:
        encode(student, x, keep)
    with torch.no_grad(), record(teacher, logits=[2]) as theirs:
        encode(teacher, x, keep)
    assert not theirs.logits[2].requires_grad
    (ours.logits[-1] - theirs.logits[2]).square().mean().backward()
    assert student.blocks[-1].attn.qkv.weight.grad.abs().sum() > 0
    assert student.blocks[-1].rel_pos.relative_position_bias_table.grad.abs().sum() > 0
    assert student.patch_embed.proj.weight.grad.abs().sum() > 0 and student.blocks[-1].mlp.fc1.weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())


@torch.no_grad()
def test_recording_does_not_change_the_forward_pass_and_sees_the_last() -> None:
    model = timm.create_model('cct_2_3x2').eval()
    x = torch.randn(150, 3, 32, 32)  # a batch that would run in slices
    with record(model, outputs=[1], logits=[0]) as seen:
        torch.testing.assert_close(model(x[:2]), model.forward_head(model.forward_features(x[:2])))
        model(x)
    assert len(seen.outputs[1]) == len(seen.logits[0]) == 150


@torch.no_grad()
def test_unfused_and_fused_attention_have_the_same_logits() -> None:
    for name in ('sl_vit', 'plain_vit', 'vit_lite_2_4', 'mae_lite_vit_tiny'):
        model = create(name)
        timm.layers.set_fused_attn(False)
        try:
            plain = create(name)
        finally:
            timm.layers.set_fused_attn(True)
        plain.load_state_dict(model.state_dict())
        x, logits = batch(model), []
        for each in (model, plain):
            with record(each, logits=[1]) as seen:
                torch.testing.assert_close(each(x), model(x))
            logits.append(seen.logits[1])
        torch.testing.assert_close(*logits)


@torch.no_grad()
def test_logits_under_timms_masks() -> None:
    attn = create('mae_lite_vit_tiny').blocks[0].attn
    x = torch.randn(2, 4, 192, dtype=torch.float64)
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = attention_logits(attn, x).masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(attention_logits(attn, x, is_causal=True), expected)
    torch.testing.assert_close(attention_logits(attn, x, attn_mask=allowed), expected)


def test_what_cannot_be_recorded_is_refused() -> None:
    model = create('mae_vit_c10')
    with pytest.raises(ZooError, match='There is no block 3: the model has 3'), record(model, outputs=[3]):
        pass
    with pytest.raises(ZooError, match='logits of MixedAttention'), record(timm.create_model('sl_cait'), logits=[0]):
        pass
    with pytest.raises(ZooError, match='LocalPiT is not a plain encoder'), record(timm.create_model('sl_pit')):
        pass
    model.set_grad_checkpointing(True)
    with pytest.raises(ZooError, match=r'set_grad_checkpointing\(False\)'), record(model, inputs=[0]):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
