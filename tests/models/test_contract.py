"""timm's contract, for every registered model; a new family is picked up by itself.

timm's own suite covers most of it; here is what that suite does not see. The costly checks run on the small models, and
are marked slow where they compile.
"""
import copy
import pickle
import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn

import tinyvit_zoo
from tinyvit_zoo import layers
from tinyvit_zoo.kernels import memory
from tinyvit_zoo.kernels.memory import keep_freed_memory

MODELS = tinyvit_zoo.list_models()
SMALL = ['cct_2_3x2', 'cvt_2_4', 'vit_lite_2_4']
# one of each family, cut down, for the checks that cost more
CASES = [
    *((name, {}) for name in SMALL), ('sl_vit', dict(depth=2)), ('sl_pit', dict(depths=(1, 1, 1))),
    ('sl_cait', dict(depth=2)), ('sl_t2t', dict(depth=2)), ('mae_vit_c10', dict(depth=2)),
    ('mae_lite_vit_tiny_rpe', dict(depth=2, img_size=64)), ('ssl_vit', dict(depth=2)),
    ('ssl_swin', dict(depths=(1, 1, 1))), ('ssl_cait', dict(depth=2))]
KINDS = [(name, dict(pos_embed=kind)) for name in SMALL for kind in ('learnable', 'sine', 'none')]


def create(name: str, **kwargs: Any) -> nn.Module:
    return timm.create_model(name, **kwargs)


def image(model: nn.Module, batch: int = 2) -> torch.Tensor:
    chans, height, width = model.pretrained_cfg['input_size']
    return torch.randn(batch, chans, *(model._traits['img_size'] or (height, width)))


def test_no_name_of_timm_is_taken() -> None:
    ours = {timm.model_entrypoint(name).__module__.partition('.')[0] for name in MODELS}
    assert ours == {'tinyvit_zoo'}
    modules = {timm.model_entrypoint(name).__module__.rpartition('.')[2] for name in MODELS}
    theirs = {timm.model_entrypoint(name).__module__.rpartition('.')[2] for name in timm.list_models()
              if name not in MODELS}
    assert not modules & theirs


@pytest.mark.parametrize('name', MODELS)
def test_attributes_and_cfg(name: str) -> None:
    model = create(name, device='meta')
    cfg = model.pretrained_cfg
    assert model.num_classes == cfg['num_classes'] and model.in_chans == cfg['input_size'][0]
    assert model.num_features == model.head_hidden_size
    assert cfg['license'] and cfg['paper_ids'] and cfg['first_conv'] and cfg['classifier']
    assert len(cfg.get('label_names') or ()) in (0, cfg['num_classes'])
    names = {name for name, _ in model.named_parameters()}
    if type(model) is not timm.models.VisionTransformer:  # timm's own names tokens that it may have
        assert model.no_weight_decay() <= names
    assert all(p.is_meta for p in (*model.parameters(), *model.buffers()))
    with pytest.raises(TypeError):
        create(name, device='meta', drop_pth_rate=0.1)


@pytest.mark.parametrize('name', [*SMALL, 'cct_7_3x1_sine', 'sl_vit', 'ssl_vit', 'sl_cait', 'sl_t2t'])
@torch.no_grad()
def test_features_only(name: str) -> None:
    features = create(name, features_only=True).eval()
    assert features.feature_info.channels() == [f.shape[1] for f in features(torch.randn(1, 3, 32, 32))]
    full = create(name).eval()
    x = torch.randn(2, 3, 32, 32)
    final, taken = full.forward_intermediates(x, norm=True)
    assert len(taken) == len(full.blocks) + 1
    tokens = full.forward_features(x)
    torch.testing.assert_close(final, tokens)
    torch.testing.assert_close(taken[-1].flatten(2).transpose(1, 2), tokens[:, full.num_prefix_tokens:])
    pairs = full.forward_intermediates(x, [1], return_prefix_tokens=True, output_fmt='NLC', intermediates_only=True)
    if full.num_early_tokens:
        assert pairs[0][0].shape[1] == 64 and pairs[0][1].shape[1] == 1


@pytest.mark.parametrize('name, kwargs', [*CASES, ('fast_cnn_half', {}), ('sl_swin', {})])
@torch.no_grad()
def test_features_only_are_what_the_model_computes(name: str, kwargs: dict) -> None:
    full = create(name, **kwargs).eval()
    features = create(name, features_only=True, out_indices=(0, 1), **kwargs).eval()
    features.load_state_dict({f'model.{key}': value for key, value in full.state_dict().items()}, strict=False)
    x = image(full)
    final, expected = full.forward_intermediates(x, (0, 1))
    assert all(map(torch.equal, features(x), expected)) and len(expected) == 2
    torch.testing.assert_close(final, full.forward_features(x))


@pytest.mark.parametrize('name', ['cct_2_3x2', 'sl_vit', 'sl_pit', 'plain_pit', 'sl_swin', 'ssl_vit'])
@torch.no_grad()
def test_intermediates_of_any_size(name: str) -> None:
    model, x = create(name).eval(), torch.randn(1, 3, 64, 16)       # as many tokens as the model's own size
    tinyvit_zoo.models.take_any_size(model)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert all(each.shape[2] == 4 * each.shape[3] for each in maps)


@pytest.mark.parametrize('name, kwargs, batch', [
    ('sl_swin', {}, 2), ('plain_swin', {}, 40), ('sl_vit', dict(depth=1), 20)])
def test_torch_func(name: str, kwargs: dict, batch: int) -> None:
    """Forward-mode derivatives are right, or refused by torch's own attention; reverse mode equals autograd."""
    model = create(name, drop_path_rate=0., **kwargs).double()
    x, tangent = torch.randn(2, batch, 3, 32, 32, dtype=torch.float64)

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return model(x)

    try:
        _, found = torch.func.jvp(run, (x,), (tangent,))
        torch.testing.assert_close(found, (run(x + 1e-5 * tangent) - run(x - 1e-5 * tangent)) / 2e-5)
    except NotImplementedError as e:
        assert 'Trying to use forward AD with _scaled_dot_product' in str(e) and 'swin' not in name
    model.eval()
    expected = torch.autograd.grad(model(x).square().sum(), [*model.parameters()])
    found = torch.func.grad(lambda tensors: torch.func.functional_call(model, tensors, (x,)).square().sum())(
        {key: value.detach() for key, value in model.named_parameters()})
    torch.testing.assert_close(list(found.values()), list(expected))


@pytest.mark.parametrize('name', ['cct_2_3x2', 'sl_vit', 'sl_swin', 'fast_cnn_half'])
def test_no_images(name: str) -> None:
    assert create(name).eval()(torch.zeros(0, 3, 32, 32)).shape == (0, 10)
    if name != 'fast_cnn_half':     # batch norms need some
        assert create(name).train()(torch.zeros(0, 3, 32, 32)).shape == (0, 10)


def test_weights_whose_width_follows_the_channels() -> None:
    with pytest.raises(tinyvit_zoo.ZooError, match='These weights take 3 channels'):
        create('fast_cnn_half', pretrained=True, in_chans=4)


@pytest.mark.parametrize('name, kwargs', KINDS)
@torch.no_grad()
def test_set_input_size(name: str, kwargs: dict) -> None:
    """A resized model computes what one built at that size computes, and goes back."""
    model = create(name, **kwargs).eval()
    before, x = copy.deepcopy(model), torch.randn(2, 3, 48, 24)
    model.set_input_size((48, 24))
    built = create(name, img_size=(48, 24), **kwargs).eval()
    state = {**before.state_dict()}
    if model.pos_embed is not None:
        state['pos_embed'] = model.pos_embed
    built.load_state_dict(state)
    torch.testing.assert_close(model(x), built(x))
    if kwargs['pos_embed'] == 'sine':
        length, dim = model.pos_embed.shape[1:]
        torch.testing.assert_close(model.pos_embed, layers.sine_table(length, dim))
        assert 'pos_embed' not in dict(model.named_parameters())
    assert model.img_size == (48, 24)


def test_a_frozen_table_stays_frozen_and_the_class_token_keeps_its_row() -> None:
    model = create('vit_lite_2_4')
    row = model.pos_embed[:, 0].detach().clone()
    model.pos_embed.requires_grad_(False)
    model.set_input_size(64)
    assert not model.pos_embed.requires_grad
    torch.testing.assert_close(model.pos_embed[:, 0], row)


@pytest.mark.parametrize('name, kwargs', CASES)
def test_gradient_checkpointing_gives_equal_gradients(name: str, kwargs: dict) -> None:
    model = create(name, **kwargs).train()
    x, grads = image(model), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)  # the same dropouts
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize('name, kwargs', CASES)
@torch.no_grad()
def test_copies_and_pickles(name: str, kwargs: dict) -> None:
    model = create(name, **kwargs).eval()
    x = image(model)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.parametrize('name, kwargs', [
    ('fast_cnn_half', {}), CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[3:])])
@torch.no_grad()
def test_scripts(name: str, kwargs: dict) -> None:
    """TorchScript takes the model and gives its numbers."""
    model = create(name, **kwargs).eval()
    x = image(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize('name, kwargs', CASES)
def test_bf16_autocast(name: str, kwargs: dict) -> None:
    model = create(name, **kwargs)
    x = image(model)
    with torch.autocast('cpu', torch.bfloat16):
        model(x).float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        half = model(x).float()
    torch.testing.assert_close(half, model(x).detach(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('name', ['sl_vit', 'sl_pit', 'sl_swin', 'ssl_cait'])
def test_indices_of_features_rise(name: str) -> None:
    for indices in ((0, 0), (1, 0), (-1, -1)):
        with pytest.raises(tinyvit_zoo.ZooError, match='expected each once, the first layers first'):
            timm.create_model(name, features_only=True, out_indices=indices)


@pytest.mark.slow
@pytest.mark.parametrize('name, kwargs, backend', [
    (*KINDS[0], 'inductor'), (*KINDS[4], 'aot_eager'), *((*case, 'eager') for case in CASES[len(SMALL):])])
def test_compiles_to_one_graph(name: str, kwargs: dict, backend: str) -> None:
    """One graph, forward and backward. Compiling it further, a minute for some, is spared for most."""
    torch.compiler.reset()      # or these are too many for one process
    model = create(name, **kwargs)
    compiled, x = torch.compile(model, fullgraph=True, backend=backend), image(model)
    model.train()
    compiled(x).sum().backward()  # with attention dropout and drop path
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name, kwargs', CASES)
@torch.no_grad()
def test_unfused_attention_gives_the_same_numbers(name: str, kwargs: dict) -> None:
    model = create(name, **kwargs).eval()
    timm.layers.set_fused_attn(False)
    try:
        plain = create(name, **kwargs).eval()
    finally:
        timm.layers.set_fused_attn(True)
    plain.load_state_dict(model.state_dict())
    x = image(model)
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.parametrize('name, kwargs', [
    CASES[0], *(case for case in CASES[len(SMALL):] if not case[0].startswith('mae_'))])  # these are timm's own class
def test_slices_are_invisible(name: str, kwargs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large batch on a CPU runs in slices: the same numbers and gradients, and hooks still see the whole batch."""
    monkeypatch.setattr(memory, '_SLICE_NUMBERS', memory._SLICE_NUMBERS // 6)
    model = create(name, **kwargs).eval()
    x, seen = torch.randn(25, 3, 32, 32), []
    step = memory.slice_length(model, x, model._largest_activation())
    assert 0 < step < len(x)
    whole, sliced = model.forward_head(model.forward_features(x)), model(x)
    torch.testing.assert_close(sliced, whole)
    weight = torch.randn_like(whole)
    grads = [torch.autograd.grad((out * weight).sum(), [*model.parameters()]) for out in (sliced, whole)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), whole)
        handle = model.norm.register_forward_hook(lambda module, args, out: seen.append(len(out)))
        model(x)
        assert seen == [25]
    handle.remove()
    handle = model.norm.register_full_backward_hook(lambda module, grads, outs: seen.append(len(outs[0])))
    model(x).sum().backward()
    assert seen == [25, 25]
    handle.remove()


def test_slices_are_even() -> None:
    model = create('vit_lite_2_4').eval()
    tenth = memory._SLICE_NUMBERS // 10
    for images in (torch.zeros(n, 3, 32, 32) for n in (10, 11, 25)):
        expected = {10: 0, 11: 6, 25: 9}[len(images)]
        assert memory.slice_length(model, images, tenth) == expected
        with torch.inference_mode():
            assert memory.slice_length(model, images, tenth) == expected
    assert memory.slice_length(model, images, 10 * memory._SLICE_NUMBERS) == 1


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='elsewhere freed memory is not kept')
def test_who_gets_the_whole_batch() -> None:
    """Batch norm while it learns; and a training in which freed memory is kept, where slices cost more than they save.
    """
    model, x = create('vit_lite_2_4'), torch.zeros(25, 3, 32, 32)
    tenth = memory._SLICE_NUMBERS // 10
    assert memory.slice_length(model, x, tenth) == 9
    model.extra = nn.BatchNorm1d(3)
    assert memory.slice_length(model, x, tenth) == 0 and memory.slice_length(model.eval(), x, tenth) == 9
    with keep_freed_memory(torch.device('cpu')):
        assert memory.slice_length(model, x, tenth) == 0
        with torch.no_grad():
            assert memory.slice_length(model, x, tenth) == 9
    assert memory.slice_length(model, x, tenth) == 9
    nn.utils.parametrizations.spectral_norm(model.head)     # a step of its iteration each time
    assert memory.slice_length(model, x, tenth) == 9 and memory.slice_length(model.train(), x, tenth) == 0


def test_pruning_drops_the_pooling_too() -> None:
    model = create('cct_2_3x2')
    model.prune_intermediate_layers([1], prune_norm=True)
    assert len(model.blocks) == 1 and model.attn_pool is None and isinstance(model.norm, nn.Identity)


def test_another_read_out() -> None:
    model = create('vit_lite_2_4')
    model.reset_classifier(7, 'seq')
    assert model(image(model)).shape == (2, 7) and 'attn_pool.score.weight' in model.state_dict()
