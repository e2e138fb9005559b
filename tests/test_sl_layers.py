"""Shifted patches and locality attention, as layers."""
import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.layers import PatchTokenization, ShiftedPatchTokenization, adapt_patch_channels
from tinyvit_zoo.models._build import adapt_linear_stem, build_model

# -- another channel count of a Linear stem ----------------------------------------------------------------------------


def stem(kind: type[nn.Module], in_chans: int) -> nn.Module:
    module = kind(in_chans, 7, 4).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize('kind', [PatchTokenization, ShiftedPatchTokenization])
@pytest.mark.parametrize('old, new', [(3, 1), (5, 1), (1, 1), (1, 3), (3, 6), (1, 4)])
@torch.no_grad()
def test_a_grey_image_gives_the_same_tokens(kind: type[nn.Module], old: int, new: int) -> None:
    """Exact to one channel, and to any number that holds each channel equally often."""
    before, after = stem(kind, old), stem(kind, new)
    tensors = {f'stem.{name}': tensor for name, tensor in before.state_dict().items()}
    adapted = adapt_patch_channels({**tensors, 'other': torch.ones(3)}, 'stem', old, new)
    assert adapted.pop('other').tolist() == [1, 1, 1]
    after.load_state_dict({name.removeprefix('stem.'): tensor for name, tensor in adapted.items()})
    grey = torch.randn(2, 1, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(after(grey.expand(-1, new, -1, -1)), before(grey.expand(-1, old, -1, -1)))


def test_channels_are_repeated_in_turn_as_a_convolution_s_are() -> None:
    before = stem(PatchTokenization, 3)
    conv = before.proj.weight.detach().unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2)
    for new in (2, 4, 5):
        weight = adapt_patch_channels({'s.proj.weight': before.proj.weight.detach()}, 's', 3, new)['s.proj.weight']
        expected = timm.models.adapt_input_conv(new, conv.float())
        torch.testing.assert_close(weight.float().unflatten(1, (4, 4, new)).permute(0, 3, 1, 2), expected)


class Small(nn.Module):
    """The least that goes through timm's builder."""

    def __init__(self, in_chans: int = 3, num_classes: int = 2, patch_size: int = 4, device: Any = None) -> None:
        super().__init__()
        self._traits = {'first_conv': None}
        self.in_chans, self.num_classes = in_chans, num_classes
        self.tokenizer = ShiftedPatchTokenization(in_chans, 7, patch_size, device=device)
        self.head = nn.Linear(7, num_classes, device=device)


def small_filter(state_dict: dict[str, Tensor], model: nn.Module, source_size: Any = None) -> dict[str, Tensor]:
    return adapt_linear_stem(state_dict, model, 'tokenizer')


def create(state: dict[str, Tensor], **kwargs: Any) -> nn.Module:
    cfg = dict(
        state_dict=state, input_size=(3, 8, 8), num_classes=2, first_conv='tokenizer.proj', classifier='head',
        architecture='small')
    return build_model(Small, 'small', True, small_filter, pretrained_cfg=cfg, **kwargs)


def test_a_linear_stem_adapts_on_load_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    state = Small().state_dict()
    with caplog.at_level(logging.WARNING):
        model = create(state, in_chans=1)
    assert not caplog.records
    expected = adapt_patch_channels(state, 'tokenizer', 3, 1)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert torch.equal(create(state).tokenizer.proj.weight, state['tokenizer.proj.weight'])


@pytest.mark.parametrize('state, kwargs, words', [
    (Small(patch_size=8).state_dict(), dict(), r'proj.weight is \[7, 960\], expected \[7, 240\]'),
    (Small(patch_size=8).state_dict(), dict(in_chans=1), r'proj.weight is \[7, 960\], expected \[7, 80\]'),
    (Small(in_chans=1).state_dict(), dict(), r'proj.weight is \[7, 80\], expected \[7, 240\]'),
    ({k: v for k, v in Small().state_dict().items() if 'norm.bias' not in k}, dict(in_chans=1), 'norm.bias is missing'),
    ({**Small().state_dict(), 'tokenizer.norm.bias': torch.ones(5)}, dict(in_chans=1), r'norm.bias is \[5\]'),
])
def test_widths_that_channels_do_not_explain_are_refused(state: Any, kwargs: dict, words: str) -> None:
    with pytest.raises(ZooError, match=words):
        create(state, **kwargs)
