"""Self-distillation's loss is the paper's formula; the teacher learns nothing by itself; schedules; every model."""
import copy
import math
from pathlib import Path

import pytest
import torch
from forked import Server
from joint_cases import ENCODERS, encoder_of, make, steps, views_of
from timm.models import VisionTransformer
from torch import Tensor

from tinyvit_zoo import ZooError
from tinyvit_zoo.methods import SelfDistillation
from tinyvit_zoo.methods.joint import momentum_at
from tinyvit_zoo.methods.self_distill import Head, loss_of_pairs
from tinyvit_zoo.models import image_size, take_any_size


def said(head: Head, features: Tensor) -> Tensor:
    """The head by hand: three layers, to the unit sphere, cosines to the directions."""
    x = features
    for i in (0, 2, 4):
        x = x @ head.mlp[i].weight.T + head.mlp[i].bias
        if i < 4:
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    directions = head.directions / head.directions.norm(dim=1, keepdim=True)
    return (x / x.norm(dim=1, keepdim=True)) @ directions.T


# -- the loss ----------------------------------------------------------------------------------------------------------
def test_the_loss_is_the_papers() -> None:
    method, (whole, local) = make('self_distill'), views_of('self_distill')
    method.centre.copy_(torch.randn(12) * 0.1)
    method.temperature.fill_(0.055)
    for parameter in [*method.teacher_encoder.parameters(), *method.teacher_head.parameters()]:
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    method.teacher_head.last_layer.parametrizations.weight.original0.data.fill_(1)
    views = [*whole, *local]
    students = [said(method.head, method.encoder(view)) / 0.1 for view in views]
    teachers = [(said(method.teacher_head, method.teacher_encoder(view)) - method.centre) / 0.055 for view in whole]
    terms = []
    for i, teacher in enumerate(teachers):
        for j, student in enumerate(students):
            if i != j:
                p = teacher.exp() / teacher.exp().sum(1, keepdim=True)
                terms.append(-(p * (student.exp() / student.exp().sum(1, keepdim=True)).log()).sum(1).mean())
    assert len(terms) == 2 * 5 - 2
    torch.testing.assert_close(method(whole, local).double(), torch.stack(terms).mean(), rtol=1e-5, atol=0)


def test_a_teacher_that_says_nothing_is_named() -> None:
    method, views = make('self_distill').train(), views_of('self_distill')
    assert method.trouble() == ''
    method(*views)
    assert method.trouble() == ''
    method.temperature.fill_(1e4)
    method(*views)
    assert 'gives the same output for every image' in method.trouble()


def test_pairs_without_local_views_and_of_equal_weight() -> None:
    targets, guesses = torch.rand(2, 3, 5).softmax(2), torch.rand(2, 3, 5).log_softmax(2)
    expected = -((targets[0] * guesses[1]).sum(1) + (targets[1] * guesses[0]).sum(1)).mean() / 2
    torch.testing.assert_close(loss_of_pairs(targets, guesses), expected)


def test_the_encoder_runs_once_for_each_size() -> None:
    method, views = make('self_distill'), views_of('self_distill')
    seen: list[tuple[int, ...]] = []
    method.encoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    method(*views)
    assert seen == [(16, 3, 8, 8), (24, 3, 4, 4)]


# -- gradients ---------------------------------------------------------------------------------------------------------
def test_where_gradients_flow() -> None:
    method, views = make('self_distill'), views_of('self_distill')
    method(*views).backward()
    without = [name for name, p in method.named_parameters() if p.grad is None]
    frozen = 'head.last_layer.parametrizations.weight.original0'
    assert frozen in without and all(name == frozen or name.startswith('teacher_') for name in without)
    assert all(not p.requires_grad for name, p in method.named_parameters() if name in without)
    assert not method.centre.requires_grad and method.head.directions.grad.abs().sum() > 0
    norm = method.head.last_layer.parametrizations.weight.original0
    assert (norm == 1).all()
    torch.testing.assert_close(method.head.last_layer.weight.norm(dim=1), torch.ones(12).double())


def test_the_last_layer_waits() -> None:
    method, views = make('self_distill'), views_of('self_distill')
    method.freeze_last = 0.1
    for progress, waits in ((0., True), (0.0999, True), (0.1, False), (0.5, False)):
        method.zero_grad()
        method(*views).backward()
        method.before_step(progress)
        assert (method.head.directions.grad is None) == waits
        assert method.head.mlp[0].weight.grad is not None


def test_the_teacher_drops_nothing_in_whatever_mode() -> None:
    method = SelfDistillation(encoder_of('ssl_vit', drop_path_rate=0.5))
    x = torch.randn(4, 3, 32, 32)
    for mode in (True, False):
        method.train(mode)
        assert torch.equal(method.teacher_encoder(x), method.teacher_encoder(x))
    assert method.train().encoder.training and not torch.equal(method.encoder(x), method.encoder(x))


# -- what changes from step to step ------------------------------------------------------------------------------------
def test_the_teacher_follows_by_the_schedule() -> None:
    method, views = make('self_distill'), views_of('self_distill')
    for own in (method.encoder, method.head.mlp):
        for parameter in own.parameters():
            parameter.data.add_(1.)
    before = copy.deepcopy(method)
    method(*views)
    method.after_step(0.3)
    decay = momentum_at(0.3, 0.996)
    assert decay == pytest.approx(1 - 0.004 * (1 + math.cos(0.3 * math.pi)) / 2)
    for name in ('encoder', 'head'):
        student = getattr(before, name).parameters()
        for old, new, own in zip(getattr(before, f'teacher_{name}').parameters(),
                                 getattr(method, f'teacher_{name}').parameters(), student, strict=True):
            torch.testing.assert_close(new, decay * old + (1 - decay) * own)
    assert method.kept() is method.teacher_encoder


def test_centre_and_temperature() -> None:
    method, (whole, local) = make('self_distill'), views_of('self_distill')
    words = said(method.teacher_head, method.teacher_encoder(whole.flatten(0, 1)))
    method(whole, local)
    assert not method.centre.any()  # not before the step
    method.after_step(0.01)
    torch.testing.assert_close(method.centre, 0.1 * words.mean(0).detach(), rtol=1e-5, atol=1e-7)
    assert method.temperature.item() == pytest.approx(0.04 + 0.03 * 0.2)
    for progress, wanted in ((0.05, 0.07), (0.9, 0.07)):
        method(whole, local)
        method.after_step(progress)
        assert method.temperature.item() == pytest.approx(wanted)
    method.eval()
    method(whole, local)
    assert method._stepped  # looking at it changes nothing


def test_a_batch_in_parts_is_one_batch() -> None:
    whole, parts = make('self_distill'), make('self_distill')
    views = views_of('self_distill')
    assert steps(whole, whole, views) == pytest.approx(steps(parts, parts, views, parts=2), rel=1e-5)
    torch.testing.assert_close(whole.centre, parts.centre)


def test_the_state_is_all_there_is() -> None:
    """Taken up in the middle, it goes on as if it had never stopped."""
    method, views = make('self_distill'), views_of('self_distill')
    steps(method, method, views)
    again = make('self_distill')
    again.load_state_dict(method.state_dict())
    assert steps(method, method, views) == steps(again, again, views)
    assert all(torch.equal(a, again.state_dict()[name]) for name, a in method.state_dict().items())


def test_the_papers_numbers() -> None:
    for dim, count in ((192, 755_968), (384, 854_272)):
        assert sum(p.numel() for p in Head(dim).parameters()) == count
    method = SelfDistillation(encoder_of('ssl_vit'))
    assert len(method.centre) == 1024 and method.temperature.item() == pytest.approx(0.04)
    assert (method.student_temperature, method.momentum, method.centre_momentum) == (0.1, 0.996, 0.9)


# -- two processes -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_two_processes_are_one(server: Server, tmp_path: Path) -> None:
    """Losses, weights, centre, teachers: of both methods, batch norm and keys of all processes included."""
    script = Path(__file__).parents[1] / 'joint_cases.py'
    server.run_two([str(script), str(tmp_path)], tmp_path / 'joint')
    for name in ('moco_v3', 'self_distill'):
        alone = make(name)
        losses = steps(alone, alone, views_of(name))
        first, second = (torch.load(tmp_path / f'{name}-{rank}.pt', weights_only=True) for rank in range(2))
        assert first['losses'].tolist() == pytest.approx(losses, rel=1e-5)
        for key, wanted in alone.state_dict().items():
            torch.testing.assert_close(first['state'][key], wanted, rtol=1e-4, atol=1e-6)
            assert torch.equal(first['state'][key], second['state'][key])


# -- every model, at every size ----------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ENCODERS)
def test_every_family(name: str) -> None:
    encoder = encoder_of(name)
    height, width = image_size(encoder)
    method = SelfDistillation(encoder, num_prototypes=20).train()
    assert method.local_size == (height // 2, width // 2)
    whole, local = torch.randn(2, 2, 3, height, width), torch.randn(3, 2, 3, height // 2, width // 2)
    loss = method(whole, local)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.requires_grad)
    method.eval()  # nothing random
    plain = method(whole, local)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(method(whole, local), plain, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('name', ENCODERS)
@torch.no_grad()
def test_another_size_is_the_model_made_for_it(name: str) -> None:
    """Positions are interpolated to what `set_input_size` would give; at the own size nothing changes."""
    model = encoder_of(name).eval()
    own, patch = image_size(model), 16 if 'lite_vit' in name else 12
    x, other = torch.randn(2, 3, *own), torch.randn(2, 3, patch * 2, patch * 3)
    before = model(x)
    if name not in ('ssl_vit', 'ssl_swin', 'ssl_cait', 'sl_swin'):
        with pytest.raises(AssertionError):
            model(other)
    resized = copy.deepcopy(model)
    resized.set_input_size((patch * 2, patch * 3))
    take_any_size(model)
    assert torch.equal(model(x), before)
    torch.testing.assert_close(model(other), resized(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['vit_lite_2_4', 'sl_pit', 'mae_vit_c10'])
def test_positions_learn_at_every_size(name: str) -> None:
    model = encoder_of(name)
    take_any_size(model)
    height, width = image_size(model)
    model(torch.randn(2, 3, height // 2, width // 2)).square().sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0
    if not isinstance(model, VisionTransformer):
        model.zero_grad()
        model.set_grad_checkpointing(True)
        model.train()(torch.randn(2, 3, height // 2, width // 2)).square().sum().backward()
        assert model.pos_embed.grad.abs().sum() > 0


def test_what_cannot_be_combined_is_refused() -> None:
    import timm

    for name, kwargs, reason in (
            ('mae_lite_vit_tiny_rpe', dict(img_size=32, depth=1), 'use mae_lite_vit_tiny'),
            ('ssl_vit', dict(img_size=6), '3 x 3 pixels'),
            ('mae_vit_c10', dict(img_size=33, depth=1), '16 x 16 pixels: .*divisible')):
        encoder = timm.create_model(name, num_classes=0, **kwargs)
        with pytest.raises(ZooError, match=reason) as caught:
            SelfDistillation(encoder)
        assert r'\n' not in str(caught.value)
    SelfDistillation(timm.create_model('mae_lite_vit_tiny_rpe', img_size=32, depth=1, num_classes=0), local_views=0)
    with pytest.raises(ZooError, match='classifier of 10 classes'):
        SelfDistillation(encoder_of('ssl_vit', num_classes=10))
