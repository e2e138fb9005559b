"""What docs/ecosystem.md says of other libraries is so, with those that are here; test_documents.py runs its code."""
import pytest
import timm
import torch

import tinyvit_zoo  # noqa: F401 (registers the models)


@pytest.mark.parametrize('name, node, args', [
    ('sl_cait', 'blocks.0', dict(depth=1)), ('sl_vit', 'blocks.0', dict(depth=1)), ('sl_pit', 'stages.0', {}),
    ('ssl_swin', 'norm', {}), ('ssl_cait', 'blocks.0', dict(depth=1))])
@torch.no_grad()
def test_a_traced_model_gives_the_same(name: str, node: str, args: dict) -> None:
    """torchvision traces by torch.fx: what depends on values is a leaf."""
    from torchvision.models.feature_extraction import create_feature_extractor
    model = timm.create_model(name, **args).eval()
    x, seen = torch.rand(1, *model.pretrained_cfg['input_size']), []
    model.get_submodule(node).register_forward_hook(lambda module, given, out: seen.append(out))
    out = create_feature_extractor(model, {node: 'inner', 'head': 'logits'})(x)
    torch.testing.assert_close(out['logits'], model(x))
    torch.testing.assert_close(out['inner'], seen[-1])


@pytest.mark.parametrize('name', ['plain_swin', 'sl_pit', 'ssl_swin', 'fast_cnn', 'sl_swin_64'])
def test_staged_models_are_encoders_of_a_unet(name: str) -> None:
    smp = pytest.importorskip('segmentation_models_pytorch')
    size, depth = timm.get_pretrained_cfg(name).input_size[-1], 4 if name.endswith('_64') else 3
    model = smp.Unet(f'tu-{name}', encoder_weights=None, encoder_depth=depth, decoder_channels=(16,) * depth, classes=2)
    out = model(torch.rand(2, 3, size, size))
    out.mean().backward()
    assert out.shape == (2, 2, size, size) and all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.parametrize('name', ['cct_4_3x2.c10', 'vit_lite_4_4', 'ssl_vit', 'sl_t2t'])
@torch.no_grad()
def test_models_of_one_stage_are_encoders_of_dpt(name: str) -> None:
    smp = pytest.importorskip('segmentation_models_pytorch')
    readout = 'ignore' if name.startswith('cct') else 'cat'     # it has no class token
    model = smp.DPT(f'tu-{name}', encoder_weights=True if '.' in name else None, classes=2, decoder_readout=readout)
    assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    if '.' in name:
        assert torch.equal(model.encoder.model.norm.weight, timm.create_model(name, pretrained=True).norm.weight)


def test_what_the_page_calls_impossible_is() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor
    with pytest.raises(torch.fx.proxy.TraceError):
        create_feature_extractor(timm.create_model('mae_lite_vit_tiny_rpe', depth=1, img_size=32), ['norm'])
    smp = pytest.importorskip('segmentation_models_pytorch')
    with pytest.raises(IndexError):
        smp.DPT('tu-ssl_cait', encoder_weights=None, classes=2).eval()(torch.rand(1, 3, 32, 32))
