"""MAE-ViT: what the paper fixes, what we chose, and the numbers of the plain definition."""
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from parity import fill, images, vit_forward, vit_shapes
from timm.models import VisionTransformer
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.measure import counting
from tinyvit_zoo.models import mae_vit


def filled(img: tuple[int, int], classes: int, chans: int = 3, depth: int = 12) -> dict[str, Tensor]:
    shapes = vit_shapes(img, 3, classes, 192, depth, 2, qkv_bias=False, norm='norm', chans=chans)
    return {name: fill(name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize('name, img, classes, chans', [
    ('mae_vit_c10', (36, 36), 10, 3), ('mae_vit_c100', (36, 36), 100, 3), ('mae_vit_c10', (12, 20), 7, 1),
    ('mae_vit_c100', (9, 3), 0, 4)])
@torch.no_grad()
def test_numbers(name: str, img: tuple[int, int], classes: int, chans: int) -> None:
    state, x = filled(img, classes, chans), images([2, chans, *img])
    model = timm.create_model(name, img_size=img, num_classes=classes, in_chans=chans).double().eval()
    model.load_state_dict(mae_vit.checkpoint_filter_fn({'model': state}, model))
    torch.testing.assert_close(model(x), vit_forward(x, state, 12, F.relu), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, count', [('mae_vit_c10', 3_593_098), ('mae_vit_c100', 3_610_468)])
def test_parameters_and_input(name: str, count: int) -> None:
    model = timm.create_model(name, device='meta')
    assert type(model) is VisionTransformer
    assert sum(p.numel() for p in model.parameters()) == count < 3.65e6
    assert model.pretrained_cfg['input_size'] == (3, 36, 36)
    assert model.pos_embed.requires_grad and model.pos_embed.shape == (1, 145, 192)
    assert all(isinstance(block.mlp.act, nn.ReLU) and block.attn.qkv.bias is None for block in model.blocks)


def test_multiply_adds_are_those_of_the_docstring() -> None:
    """All; without the two products of attention; with LayerNorms; without the attention modules."""
    macs = counting.count(timm.create_model('mae_vit_c10', device='meta')).macs
    linear = macs - 12 * 2 * 145 ** 2 * 192
    values = (linear, linear + 5 * 25 * 145 * 192, macs, linear - 12 * 145 * 4 * 192 ** 2)
    figures = [f'{value / 1e9:.3f}G' for value in values]
    assert figures == ['0.514G', '0.517G', '0.611G', '0.257G']
    assert all(figure in mae_vit.__doc__ for figure in figures)


def test_a_masked_autoencoder_gives_its_encoder_and_nothing_is_made_up(tmp_path: Path) -> None:
    encoder = {f'encoder.{name}': tensor for name, tensor in filled((36, 36), 0).items()}
    decoder = {'mask_token': torch.zeros(1, 1, 96), 'decoder_pred.bias': torch.zeros(27)}
    torch.save({**encoder, **decoder}, tmp_path / 'w.pth')
    for empty in (dict(state_dict={}), dict(state_dict=5), dict(file=''), dict(url={})):
        with pytest.raises(ZooError, match=f'{next(iter(empty))} is .*: expected weights'):
            timm.create_model('mae_vit_c10', pretrained=True, pretrained_cfg_overlay=empty)
    overlay = dict(file=str(tmp_path / 'w.pth'), num_classes=0)
    model = timm.create_model('mae_vit_c10', pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(model.norm.weight.data.double(), encoder['encoder.norm.weight'], rtol=0, atol=1e-6)
    for name in ('encoder.pos_embed', 'encoder.norm.bias'):  # a learned table has no stand-in
        torch.save({key: tensor for key, tensor in {**encoder, **decoder}.items() if key != name}, tmp_path / 'w.pth')
        with pytest.raises(ZooError, match=f'{name.removeprefix("encoder.")} is missing'):
            timm.create_model('mae_vit_c10', pretrained=True, pretrained_cfg_overlay=overlay)


def test_the_table_resizes_on_load_as_in_a_model(tmp_path: Path) -> None:
    torch.save(filled((36, 36), 10), tmp_path / 'w.pth')
    overlay = dict(file=str(tmp_path / 'w.pth'))
    loaded = timm.create_model('mae_vit_c10', pretrained=True, pretrained_cfg_overlay=overlay, img_size=(48, 30))
    model = timm.create_model('mae_vit_c10', pretrained=True, pretrained_cfg_overlay=overlay)
    model.set_input_size((48, 30))
    torch.testing.assert_close(model.pos_embed, loaded.pos_embed)
    assert model(torch.zeros(1, 3, 48, 30)).shape == (1, 10)
