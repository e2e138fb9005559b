"""Masked autoencoders: the papers' losses from plain formulas, gradients where they belong, encoders of every kind."""
from typing import Any

import pytest
import timm
import torch
from parity import sincos2d
from torch import Tensor, nn
from torch.nn.functional import conv2d

from tinyvit_zoo import ZooError
from tinyvit_zoo.methods import (
    DistilledAutoencoder,
    MaskedAutoencoder,
    MaskedModel,
    SmallMaskedAutoencoder,
    join_patches,
    random_keep,
)
from tinyvit_zoo.models import attention_logits, encode, list_models

ENCODERS: dict[str, dict[str, Any]] = {  # every kind of plain encoder, small: 3 x 4 patches
    'mae_vit_c10': dict(img_size=(9, 12), depth=3), 'mae_lite_vit_tiny': dict(img_size=(48, 64), depth=3),
    'mae_lite_vit_tiny_rpe': dict(img_size=(48, 64), depth=3), 'mae_lite_vit_small': dict(img_size=(48, 64), depth=2),
    'vit_lite_2_4': dict(img_size=(12, 16)), 'cvt_2_4': dict(img_size=(12, 16)),
    'ssl_vit': dict(img_size=(12, 16), depth=3),
    'sl_vit': dict(img_size=(12, 16), depth=3), 'plain_vit': dict(img_size=(12, 16), depth=3),
}
PATCHES = 12


def create(name: str, **kwargs: Any) -> Any:
    args = {'num_classes': 0, **ENCODERS[name], **kwargs}
    if name.startswith('mae_'):
        args.setdefault('global_pool', 'token')
    return timm.create_model(name, **args).double().eval()


def batch(model: MaskedModel, count: int = 3) -> tuple[Tensor, Tensor]:
    height, width = (length * model.patch_size for length in model.grid_size)
    return torch.randn(count, 3, height, width).double(), torch.rand(count, PATCHES).double()


def plain_patches(images: Tensor, size: int) -> Tensor:
    """[B, N, size * size * C], by slicing."""
    rows = [images[:, :, y:y + size, x:x + size].permute(0, 2, 3, 1).flatten(1)
            for y in range(0, images.shape[2], size) for x in range(0, images.shape[3], size)]
    return torch.stack(rows, dim=1)


def plain_errors(images: Tensor, prediction: Tensor, size: int, normalize: bool) -> Tensor:
    target = plain_patches(images, size)
    if normalize:
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    return ((prediction - target) ** 2).mean(2)


# -- the losses --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('alpha', [0., 0.1, 1.])
@torch.no_grad()
def test_small_autoencoder_discounts_what_was_seen(alpha: float, normalize: bool) -> None:
    """Mean over all masked patches, plus alpha times the mean over all visible ones."""
    model = SmallMaskedAutoencoder(create('mae_vit_c10'), visible_weight=alpha, normalize_targets=normalize).double()
    x, noise = batch(model)
    prediction, mask = model.reconstruct(x, noise)
    assert mask.sum(1).tolist() == [9.] * 3
    errors = plain_errors(x, prediction, 3, normalize)
    expected = errors[mask == 1].mean() + alpha * errors[mask == 0].mean()
    torch.testing.assert_close(model(x, noise), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_lite_autoencoder_counts_masked_patches_alone() -> None:
    model = MaskedAutoencoder(create('vit_lite_2_4')).double()
    x, noise = batch(model)
    prediction, mask = model.reconstruct(x, noise)
    expected = plain_errors(x, prediction, 4, True)[mask == 1].mean()
    torch.testing.assert_close(model(x, noise), expected, rtol=0, atol=1e-12)


def plain_logits(block: Any, x: Tensor, heads: int) -> Tensor:
    """q k^T / sqrt(d) of timm's block, for tokens that enter it."""
    qkv = block.attn.qkv(block.norm1(x))
    q, k, _ = qkv.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    return q @ k.transpose(2, 3) / q.shape[3] ** 0.5


def tokens_through(model: Any, x: Tensor, keep: Tensor, blocks: int) -> Tensor:
    """Class and kept patches behind so many blocks of timm's ViT, step by step."""
    tokens = torch.cat([model.cls_token.expand(len(x), -1, -1), model.patch_embed(x)], dim=1) + model.pos_embed
    tokens = torch.cat([tokens[:, :1], torch.stack([t[1:][k] for t, k in zip(tokens, keep, strict=True)])], dim=1)
    for block in model.blocks[:blocks]:
        tokens = block(tokens)
    return tokens


def distilled(decoder_block: int, student: str = 'mae_lite_vit_tiny', **kwargs: Any) -> DistilledAutoencoder:
    """A student of 3 heads and a teacher of 12, at the same grid."""
    heads = {'num_heads': 3} if student == 'mae_lite_vit_tiny' else {}
    return DistilledAutoencoder(
        create(student, **heads), create('mae_lite_vit_small'), decoder_block, **kwargs).double()


@torch.no_grad()
def test_distillation_of_the_attention() -> None:
    """D-MAE: MSE of the last blocks' logits, the student's mixed into the teacher's heads, added to the MAE loss."""
    model = distilled(0, weight=0.7)
    student, teacher = model.encoder, model._teacher[0]
    x, noise = batch(model)
    keep, mask = random_keep(noise, 0.75)
    own = plain_logits(student.blocks[2], tokens_through(student, x, keep, 2), 3)
    theirs = plain_logits(teacher.blocks[1], tokens_through(teacher, x, keep, 1), 12)
    mixed = torch.einsum('th,bhij->btij', model.attn_adapter.weight[:, :, 0, 0], own)
    prediction = model.decode(student.norm(tokens_through(student, x, keep, 3)), keep)
    expected = plain_errors(x, prediction, 16, True)[mask == 1].mean() + 0.7 * ((mixed - theirs) ** 2).mean()
    torch.testing.assert_close(model(x, noise), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_decoupled_distillation() -> None:
    """D2-MAE: the decoder reads an inner block; a block more has logits that are held to the teacher's last."""
    model = distilled(1)
    student, teacher, extra = model.encoder, model._teacher[0], model.next_attention
    x, noise = batch(model)
    keep, mask = random_keep(noise, 0.75)
    prediction = model.decode(model.inner_norm(tokens_through(student, x, keep, 1)), keep)
    q, k = extra.qk(extra.norm(tokens_through(student, x, keep, 3))).chunk(2, dim=2)
    q, k = (y.reshape(3, 4, 3, 64).transpose(1, 2) for y in (q, k))
    theirs = plain_logits(teacher.blocks[1], tokens_through(teacher, x, keep, 1), 12)
    mixed = conv2d(q @ k.transpose(2, 3) / 8, model.attn_adapter.weight)
    expected = plain_errors(x, prediction, 16, True)[mask == 1].mean() + ((mixed - theirs) ** 2).mean()
    torch.testing.assert_close(model(x, noise), expected, rtol=0, atol=1e-10)


# -- gradients ---------------------------------------------------------------------------------------------------------
def without_gradient(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}


@pytest.mark.parametrize('name', ENCODERS)
@pytest.mark.parametrize('kind', [SmallMaskedAutoencoder, MaskedAutoencoder])
def test_gradients_reach_all_that_is_trained(kind: type[MaskedModel], name: str) -> None:
    """And a bfloat16 step is near the one in full precision."""
    model = kind(create(name)).float()  # type: ignore[call-arg]
    x, noise = (y.float() for y in batch(model, 6))
    loss = model(x, noise)
    loss.backward()
    fixed = {'encoder.pos_embed'} if kind is MaskedAutoencoder else set()
    unread = {n for n, _ in model.named_parameters() if n.startswith('encoder.attn_pool.')}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == fixed | unread
    keys = {n for n in without_gradient(model) if n.endswith('.k_bias')}
    assert without_gradient(model) - keys == fixed | unread
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(model(x, noise), loss, rtol=0.05, atol=0.)


def test_the_teacher_learns_nothing_and_is_in_no_checkpoint() -> None:
    model = distilled(0)
    teacher = model._teacher[0]
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    model.train()
    model(*batch(model)).backward()
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any('teacher' in name for name in model.state_dict()) and len(model.state_dict()) > 50
    assert without_gradient(model) == {'encoder.pos_embed'}


def test_decoupled_blocks_learn_from_the_teacher_alone() -> None:
    """The pixels' error reaches the blocks that the decoder reads, the distillation reaches all."""
    model = distilled(1)
    model(*batch(model)).backward()
    assert without_gradient(model) == {'encoder.pos_embed', 'encoder.norm.weight', 'encoder.norm.bias'}
    model.zero_grad()
    model.weight = 0.
    model(*batch(model)).backward()
    reached = {name.split('.')[2] for name, p in model.named_parameters()
               if name.startswith('encoder.blocks') and name not in without_gradient(model)}
    assert reached == {'0'}


# -- what is masked is not seen ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ENCODERS)
@torch.no_grad()
def test_masked_pixels_have_no_effect_on_the_prediction(name: str) -> None:
    """Nor where a patch's tokenizer looks over its edges."""
    model = SmallMaskedAutoencoder(create(name)).double()
    x, noise = batch(model)
    prediction, mask = model.reconstruct(x, noise)
    hidden = model.as_image(mask[:, :, None].expand(-1, -1, model.patch_size ** 2), x)
    other, _ = model.reconstruct(x + hidden * torch.randn_like(x), noise)
    torch.testing.assert_close(other, prediction, rtol=0, atol=0)
    other, _ = model.reconstruct(x + (1 - hidden) * torch.randn_like(x), noise)
    assert (other - prediction).abs().max() > 1e-3


@torch.no_grad()
def test_pictures_show_what_was_seen_and_what_was_predicted() -> None:
    for normalize in (False, True):
        model = SmallMaskedAutoencoder(create('mae_vit_c10'), normalize_targets=normalize).double()
        x, noise = batch(model)
        seen, made = model.picture(x, noise)
        prediction, mask = model.reconstruct(x, noise)
        patches, shown, truth = (plain_patches(y, 3) for y in (seen, made, x))
        assert torch.equal(patches[mask == 0], truth[mask == 0]) and not patches[mask == 1].any()
        assert torch.equal(shown[mask == 0], truth[mask == 0])
        wanted = prediction
        if normalize:
            wanted = prediction * (truth.var(2, keepdim=True) + 1e-6).sqrt() + truth.mean(2, keepdim=True)
        torch.testing.assert_close(shown[mask == 1], wanted[mask == 1])


def test_joining_is_the_inverse_of_cutting() -> None:
    x = torch.randn(2, 4, 6, 9)
    assert torch.equal(join_patches(plain_patches(x, 3), (2, 3), 3), x)


# -- what each method makes of the encoder -----------------------------------------------------------------------------
def test_positions_are_the_encoders_own_or_fixed_waves() -> None:
    for name in ('vit_lite_2_4', 'cvt_2_4', 'sl_vit'):
        encoder = create(name)
        own = encoder.pos_embed.detach().clone()
        small = SmallMaskedAutoencoder(encoder).double()
        assert torch.equal(encoder.pos_embed, own) and small.decoder_pos_embed.requires_grad
        lite = MaskedAutoencoder(encoder)
        prefix = encoder.num_prefix_tokens
        expected = sincos2d((3, 4), own.shape[2])
        torch.testing.assert_close(encoder.pos_embed.data, expected if prefix else expected[:, 1:])
        assert not dict(lite.named_parameters()).keys() & {'decoder_pos_embed'}
    with pytest.raises(ZooError, match='has fixed positions'):
        MaskedAutoencoder(create('cvt_2_4', pos_embed='sine'))
    SmallMaskedAutoencoder(create('cvt_2_4', pos_embed='sine'))


def test_draws_belong_to_images_whatever_the_mask_ratio() -> None:
    model = SmallMaskedAutoencoder(create('ssl_vit'), mask_ratio=0.5).double()
    noise, = model.draw(5, torch.Generator().manual_seed(0))
    assert noise.shape == (5, PATCHES) and random_keep(noise, 0.5)[1].sum(1).tolist() == [6.] * 5


@pytest.mark.parametrize('name', [
    name for name in list_models() if not name.endswith('_64')
    and not name.startswith(('mae_', 'vit_lite', 'cvt_', 'ssl_vit', 'sl_vit', 'plain_vit'))])
def test_what_cannot_be_masked_is_refused_with_what_can(name: str) -> None:
    with pytest.raises(ZooError, match=r'use mae_vit.*moco_v3') as error:
        SmallMaskedAutoencoder(timm.create_model(name, num_classes=0))
    assert r'\n' not in str(error.value)


@pytest.mark.parametrize('make, words', [
    (lambda: SmallMaskedAutoencoder(create('mae_vit_c10'), mask_ratio=1.), 'leaves none'),
    (lambda: SmallMaskedAutoencoder(create('mae_vit_c10'), mask_ratio=0.), 'leaves none'),
    (lambda: SmallMaskedAutoencoder(create('mae_vit_c10'), decoder_heads=5), 'multiple of decoder_heads'),
    (lambda: SmallMaskedAutoencoder(create('vit_lite_2_4', num_classes=10)), 'num_classes=0'),
    (lambda: SmallMaskedAutoencoder(create('cvt_2_4', pos_embed='none')), 'no position embedding'),
    (lambda: distilled(3), 'decoder_block is 3, expected 0 .none. to 2'),
    (lambda: distilled(0, 'vit_lite_2_4', decoder_dim=96) and None, None),
    (lambda: DistilledAutoencoder(create('mae_vit_c10'), create('mae_lite_vit_tiny', img_size=64)), '4 tokens, but'),
])
def test_refusals(make: Any, words: str | None) -> None:
    """Also: a student and a teacher of different families, as long as their patches are the same."""
    if words is None:
        make()
        return
    with pytest.raises(ZooError, match=words):
        make()


def test_logits_are_those_that_analysis_reads() -> None:
    teacher = create('mae_lite_vit_small')
    x = torch.randn(2, 5, 384).double()
    torch.testing.assert_close(
        attention_logits(teacher.blocks[0].attn, teacher.blocks[0].norm1(x)), plain_logits(teacher.blocks[0], x, 12))
    assert encode(teacher, torch.randn(1, 3, 48, 64).double()).shape == (1, 13, 384)
