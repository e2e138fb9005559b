"""MoCo-v3's loss is the paper's formula; gradients reach the query's side alone; two processes are one."""
import math

import pytest
import torch
import torch.nn.functional as F
from joint_cases import ENCODERS, encoder_of, make, views_of
from parity import sincos2d
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.methods import MoCoV3
from tinyvit_zoo.methods.joint import BatchNorm, momentum_at
from tinyvit_zoo.models import image_size


def through(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Linear layers without bias, each normalised over the batch, by hand."""
    for i in range(0, len(layers), 3):
        linear, norm = layers[i], layers[i + 1]
        assert linear.bias is None
        x = x @ linear.weight.T
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        if i + 2 < len(layers):
            x = (x * norm.weight + norm.bias).clamp(min=0)
        else:
            assert norm.weight is None and norm.bias is None
    return x


def info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    losses = []
    for i in range(len(q)):
        similar = torch.stack([(q[i] * k[j]).sum() / (q[i].norm() * k[j].norm()) for j in range(len(k))]) / temperature
        losses.append(-(similar[i].exp() / similar.exp().sum()).log())
    return 2 * temperature * torch.stack(losses).mean()


def test_the_loss_is_the_papers() -> None:
    method, (views,) = make('moco_v3'), views_of('moco_v3')
    for parameter in method.momentum_encoder.parameters():  # another network than the query's
        parameter.mul_(1.3)
    for parameter in method.projector.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    one, two = views
    q1, q2 = (through(method.predictor, through(method.projector, method.encoder(view))) for view in (one, two))
    k1, k2 = (through(method.momentum_projector, method.momentum_encoder(view)) for view in (one, two))
    expected = info_nce(q1, k2, 0.2) + info_nce(q2, k1, 0.2)
    torch.testing.assert_close(method(views).double(), expected, rtol=1e-5, atol=0)
    same = F.normalize(torch.randn(6, 5), dim=1)
    assert method.contrast(same, same) < method.contrast(same, same.flip(0))


def test_where_gradients_flow() -> None:
    method, (views,) = make('moco_v3'), views_of('moco_v3')
    method(views).backward()
    without = [name for name, p in method.named_parameters() if p.grad is None]
    assert without and all(name.startswith('momentum_') for name in without)
    assert all(not p.requires_grad for name, p in method.named_parameters() if name.startswith('momentum_'))
    assert all(p.grad.abs().sum() > 0 for name, p in method.named_parameters() if p.grad is not None
               and not name.endswith('qkv.bias'))


def test_the_momentum_networks_follow_by_the_schedule() -> None:
    assert momentum_at(0., 0.99) == pytest.approx(0.99) and momentum_at(1., 0.99) == 1.
    assert momentum_at(0.25, 0.9) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)
    method = make('moco_v3')
    pairs = [(method.encoder, method.momentum_encoder), (method.projector, method.momentum_projector)]
    for own, average in pairs:
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), average.parameters(), strict=True))
        for parameter in own.parameters():
            parameter.data.add_(1.)
    before = [parameter.clone() for _, average in pairs for parameter in average.parameters()]
    method.after_step(0.25)
    decay = momentum_at(0.25, 0.99)
    after = [parameter for _, average in pairs for parameter in average.parameters()]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old * decay + (old + 1) * (1 - decay))


def test_the_momentum_encoder_drops_nothing() -> None:
    method = MoCoV3(encoder_of('ssl_vit', drop_path_rate=0.5), 16, 8).train()
    assert method.encoder.training and not method.momentum_encoder.training
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(method.momentum_encoder(x), method.momentum_encoder(x))
    assert not torch.equal(method.encoder(x), method.encoder(x))


def test_the_batch_norm_is_torchs() -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    ours, torchs = BatchNorm(4).double(), nn.BatchNorm1d(4).double()
    torch.testing.assert_close(ours(x), torchs(x))
    torch.testing.assert_close(ours.eval()(x), torchs(x))  # always by the batch


def test_the_papers_sizes_and_a_plain_vits_beginning() -> None:
    method = MoCoV3(encoder_of('mae_lite_vit_tiny', img_size=(64, 32), global_pool='token'))
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(method.projector) == 192 * 4096 + 4096 * 4096 + 4096 * 256 + 4 * 4096
    assert count(method.predictor) == 256 * 4096 + 4096 * 256 + 2 * 4096
    encoder = method.encoder
    torch.testing.assert_close(encoder.pos_embed.detach().double(), sincos2d((4, 2), 192, row_first=True))
    assert not encoder.pos_embed.requires_grad and encoder.patch_embed.proj.weight.requires_grad
    assert 0 < encoder.cls_token.abs().max() < 1e-5
    torch.testing.assert_close(method.momentum_encoder.pos_embed, encoder.pos_embed)


@pytest.mark.parametrize('name', ENCODERS)
def test_every_family(name: str) -> None:
    method = MoCoV3(encoder_of(name), 16, 8).train()
    loss = method(torch.randn(2, 4, 3, *image_size(method.encoder)))
    loss.backward()
    assert torch.isfinite(loss)
    trained = [p for p in method.encoder.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(method(torch.randn(2, 4, 3, *image_size(method.encoder))))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ZooError, match='classifier of 10 classes'):
        MoCoV3(encoder_of('ssl_vit', num_classes=10))
    with pytest.raises(ZooError, match='not pooled'):
        MoCoV3(encoder_of('ssl_vit', global_pool=''))
