"""CaiT gives the numbers of the authors' code for every combination of its two add-ons, and masks as the paper says."""
import pytest
import timm
import torch
import torch.nn.functional as F
from parity import fill, images, load_fixtures
from torch import Tensor

import tinyvit_zoo
from tinyvit_zoo.measure import counting
from tinyvit_zoo.models.sl_cait import MixedAttention, checkpoint_filter_fn

NAMES = ['plain_cait', 'sl_cait', 'plain_cait_64', 'sl_cait_64']
COMBINATIONS = [(spt, lsa) for spt in (False, True) for lsa in (False, True)]
PARAMETERS = {  # (px, classes): by spt and lsa, in the order of COMBINATIONS
    (32, 10): (9_020_618, 9_020_722, 9_057_962, 9_058_066),
    (32, 100): (9_037_988, 9_038_092, 9_075_332, 9_075_436),
    (64, 200): (9_084_936, 9_085_040, 9_234_312, 9_234_416),
}
MACS = {'plain_cait': 595.70, 'sl_cait': 598.05, 'plain_cait_64': 597.50, 'sl_cait_64': 606.94}


# -- the definition written out plainly, in the authors' tensor names --------------------------------------------------
def shapes(img: tuple[int, int], patch: int, chans: int, classes: int, spt: bool, lsa: bool,
           depth: int = 24, class_depth: int = 2) -> dict[str, list[int]]:
    width = chans * patch ** 2
    tokens = (img[0] // patch) * (img[1] // patch)
    found: dict[str, list[int]] = {'pos_embedding': [1, tokens, 192], 'cls_token': [1, 1, 192]}
    if spt:
        found.update({'to_patch_embedding.0.merging.1.weight': [5 * width],
                      'to_patch_embedding.0.merging.1.bias': [5 * width],
                      'to_patch_embedding.0.merging.2.weight': [192, 5 * width],
                      'to_patch_embedding.0.merging.2.bias': [192]})
    else:
        found.update({'to_patch_embedding.1.weight': [192, width], 'to_patch_embedding.1.bias': [192]})
    block = {
        '0.scale': [1, 1, 192], '0.fn.norm.weight': [192], '0.fn.norm.bias': [192],
        '0.fn.fn.mix_heads_pre_attn': [4, 4], '0.fn.fn.mix_heads_post_attn': [4, 4],
        **({'0.fn.fn.scale': [4]} if lsa else {}),
        '0.fn.fn.to_q.weight': [256, 192], '0.fn.fn.to_kv.weight': [512, 192],
        '0.fn.fn.to_out.0.weight': [192, 256], '0.fn.fn.to_out.0.bias': [192],
        '1.scale': [1, 1, 192], '1.fn.norm.weight': [192], '1.fn.norm.bias': [192],
        '1.fn.fn.net.0.weight': [384, 192], '1.fn.fn.net.0.bias': [384],
        '1.fn.fn.net.3.weight': [192, 384], '1.fn.fn.net.3.bias': [192]}
    for stage, count in (('patch', depth), ('cls', class_depth)):
        for i in range(count):
            found.update({f'{stage}_transformer.layers.{i}.{name}': shape for name, shape in block.items()})
    found.update({'mlp_head.0.weight': [192], 'mlp_head.0.bias': [192]})
    if classes:
        found.update({'mlp_head.1.weight': [classes, 192], 'mlp_head.1.bias': [classes]})
    return found


def shift(x: Tensor, down: int, right: int) -> Tensor:
    """The content moved, zeros moved in."""
    moved = torch.roll(x, (down, right), (2, 3))
    rows, cols = torch.arange(x.shape[2]), torch.arange(x.shape[3])
    kept = ((rows >= down) & (rows < x.shape[2] + down))[:, None] & (cols >= right) & (cols < x.shape[3] + right)
    return moved * kept


def forward(x: Tensor, s: dict[str, Tensor], patch: int, mask: str) -> Tensor:
    """Logits, or the features of the class token. `mask`: 'authors' or 'paper'."""
    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * s[f'{name}.weight'] + s[f'{name}.bias']

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ s[f'{name}.weight'].T + s.get(f'{name}.bias', 0)

    def attend(x: Tensor, context: Tensor, name: str) -> Tensor:
        q, k, v = (t.unflatten(2, (4, 64)).transpose(1, 2) for t in (
            linear(x, f'{name}.to_q'), *linear(context, f'{name}.to_kv').chunk(2, -1)))
        logits = q @ k.transpose(-1, -2) * s.get(f'{name}.scale', torch.full((4,), 64 ** -0.5))[:, None, None]
        masked = f'{name}.scale' in s and name.startswith('patch')
        diagonal = torch.eye(logits.shape[-1], dtype=torch.bool)
        if masked and mask == 'authors':
            logits = logits.masked_fill(diagonal, -1e-9)
        logits = torch.einsum('bhij,hg->bgij', logits, s[f'{name}.mix_heads_pre_attn'])
        if masked and mask == 'paper':
            logits = logits.masked_fill(diagonal, -torch.inf)
        attn = torch.einsum('bhij,hg->bgij', logits.softmax(-1), s[f'{name}.mix_heads_post_attn'])
        return linear((attn @ v).transpose(1, 2).flatten(2), f'{name}.to_out.0')

    def mlp(x: Tensor, name: str) -> Tensor:
        return linear(F.gelu(linear(norm(x, f'{name}.fn.norm'), f'{name}.fn.fn.net.0')), f'{name}.fn.fn.net.3')

    spt = 'to_patch_embedding.0.merging.1.weight' in s
    d = patch // 2
    if spt:
        x = torch.cat([x] + [shift(x, down, right) for down in (d, -d) for right in (d, -d)], 1)
    x = F.unfold(x, patch, stride=patch).unflatten(1, (-1, patch * patch)).permute(0, 3, 2, 1).flatten(2)
    x = norm(x, 'to_patch_embedding.0.merging.1') if spt else x
    x = linear(x, 'to_patch_embedding.0.merging.2' if spt else 'to_patch_embedding.1') + s['pos_embedding']
    token = s['cls_token'].expand(len(x), -1, -1)
    for i in range(sum(name.startswith('patch') and name.endswith('to_q.weight') for name in s)):
        name = f'patch_transformer.layers.{i}'
        y = norm(x, f'{name}.0.fn.norm')
        x = x + s[f'{name}.0.scale'] * attend(y, y, f'{name}.0.fn.fn')
        x = x + s[f'{name}.1.scale'] * mlp(x, f'{name}.1')
    for i in range(sum(name.startswith('cls') and name.endswith('to_q.weight') for name in s)):
        name = f'cls_transformer.layers.{i}'
        token = token + s[f'{name}.0.scale'] * attend(norm(token, f'{name}.0.fn.norm'), x, f'{name}.0.fn.fn')
        token = token + s[f'{name}.1.scale'] * mlp(token, f'{name}.1')
    x = norm(token[:, 0], 'mlp_head.0')
    return linear(x, 'mlp_head.1') if 'mlp_head.1.weight' in s else x


# -- the numbers -------------------------------------------------------------------------------------------------------
def load(name: str, state: dict[str, Tensor], **kwargs: object) -> torch.nn.Module:
    model = timm.create_model(name, **kwargs).double().eval()
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model


def check(name: str, img: tuple[int, int], chans: int, classes: int, spt: bool, lsa: bool, mask: str,
          **depths: int) -> None:
    patch = 8 if name.endswith('_64') else 4
    state = {key: fill(key, shape) for key, shape in shapes(img, patch, chans, classes, spt, lsa, **depths).items()}
    model = load(name, state, img_size=img, in_chans=chans, num_classes=classes, spt=spt, lsa=lsa, lsa_mask=mask,
                 **depths)
    x = images([2, chans, *img])
    torch.testing.assert_close(model(x), forward(x, state, patch, mask), rtol=0, atol=1e-9)


@torch.no_grad()
def test_fixture() -> None:
    """The authors' own numbers; the plain definition above is held to them too."""
    case = next(case for case in load_fixtures('spt_lsa') if case['name'] == 'sl_cait_32_c10')
    state = {key: fill(key, shape) for key, shape in case['state'].items()}
    assert case['state'] == shapes((32, 32), 4, 3, 10, True, True)
    expected = torch.tensor(case['logits'], dtype=torch.float64)
    model = load('sl_cait', state, lsa_mask='authors')
    x = images(case['input'], case['image_seed'])
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(forward(x, state, 4, 'authors'), expected, rtol=0, atol=1e-9)
    # rounding the weights alone makes a difference of 1e-4: these random mixings are ill-conditioned, 24 in a row
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=2e-3)


@pytest.mark.parametrize('spt, lsa', COMBINATIONS)
@pytest.mark.parametrize('name, px, classes', [('sl_cait', 32, 100), ('plain_cait', 32, 2), ('sl_cait_64', 64, 200)])
@torch.no_grad()
def test_every_combination(name: str, px: int, classes: int, spt: bool, lsa: bool) -> None:
    check(name, (px, px), 3, classes, spt, lsa, 'authors')


@pytest.mark.parametrize('spt, lsa', COMBINATIONS)
@pytest.mark.parametrize('mask', ['paper', 'authors'])
@pytest.mark.parametrize('name, img, chans, classes, depth, class_depth', [
    ('sl_cait', (45, 18), 1, 0, 2, 1), ('plain_cait', (4, 8), 5, 2, 1, 2), ('plain_cait_64', (24, 41), 4, 3, 3, 1)])
@torch.no_grad()
def test_sizes_channels_classes(
        name: str, img: tuple[int, int], chans: int, classes: int, depth: int, class_depth: int, mask: str, spt: bool,
        lsa: bool) -> None:
    check(name, img, chans, classes, spt, lsa, mask, depth=depth, class_depth=class_depth)


@pytest.mark.parametrize('px, classes', PARAMETERS)
def test_parameter_count(px: int, classes: int) -> None:
    name = 'sl_cait' if px == 32 else 'sl_cait_64'
    for (spt, lsa), count in zip(COMBINATIONS, PARAMETERS[px, classes], strict=True):
        model = timm.create_model(name, num_classes=classes, spt=spt, lsa=lsa, device='meta')
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize('name', NAMES)
def test_macs(name: str) -> None:
    assert counting.count(timm.create_model(name, device='meta')).macs / 1e6 == pytest.approx(MACS[name], abs=0.005)


# -- the mask ----------------------------------------------------------------------------------------------------------
def weights_to_itself(attn: MixedAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """How the output of the first token changes with the values of itself, and of another token."""
    kept = []
    handle = attn.kv.register_forward_hook(lambda module, args, out: kept.append(out))
    out = attn(x, x)
    handle.remove()
    values = torch.autograd.grad(out[:, 0].float().square().sum(), kept[0])[0].unflatten(2, (2, -1))[:, :, 1]
    return values[:, 0], values[:, 1]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_no_token_attends_to_itself(dtype: torch.dtype) -> None:
    model = timm.create_model('sl_cait', depth=2).to(dtype)
    x = torch.randn(2, 64, 192, dtype=dtype)
    for block in model.blocks:
        itself, other = weights_to_itself(block.attn, x)
        assert (itself == 0).all() and (other != 0).any()
    model(torch.randn(2, 3, 32, 32, dtype=dtype)).float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize('kwargs', [dict(lsa=False), dict(lsa_mask='authors')])
def test_without_the_mask_a_token_attends_to_itself(kwargs: dict) -> None:
    model = timm.create_model('sl_cait', depth=1, **kwargs)
    assert (weights_to_itself(model.blocks[0].attn, torch.randn(2, 64, 192))[0] != 0).all()


@pytest.mark.parametrize('mask', ['paper', 'authors'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_a_lone_patch_attends_to_itself(dtype: torch.dtype, mask: str) -> None:
    model = timm.create_model('sl_cait', img_size=4, depth=1, lsa_mask=mask, dtype=dtype)
    logits = model(torch.randn(2, 3, 4, 4, dtype=dtype))
    logits.float().sum().backward()
    assert torch.isfinite(logits).all() and all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.blocks[0].attn.kv.weight.grad.abs().sum() > 0


def test_a_bad_mask_is_refused() -> None:
    with pytest.raises(tinyvit_zoo.ZooError, match="'paper' or 'authors'"):
        timm.create_model('sl_cait', lsa_mask='true')


# -- the rest ----------------------------------------------------------------------------------------------------------
def test_initialisation_and_drop_path_are_the_authors() -> None:
    torch.manual_seed(0)
    model = timm.create_model('sl_cait')
    assert [block.ls1.gamma[0].item() for block in model.blocks] == pytest.approx([0.1] * 18 + [1e-5] * 6)
    assert {block.ls2.gamma[0].item() for block in model.class_blocks} == {torch.tensor(0.1).item()}
    assert abs(model.pos_embed.std().item() - 1) < 0.05 and abs(model.cls_token.std().item() - 1) < 0.3
    mixing = torch.stack([m for block in model.blocks for m in (block.attn.mix_pre, block.attn.mix_post)])
    assert abs(mixing.std().item() - 1) < 0.1
    assert abs(model.blocks[3].mlp.fc1.weight.std().item() - (2 / (192 + 384)) ** 0.5) < 0.002
    blocks = [*model.blocks, *model.class_blocks]
    assert {block.attn.temperature[0].item() for block in blocks} == {0.125}
    assert {drop.drop_prob for block in blocks for drop in (block.drop_path1, block.drop_path2)} == {0.1}


def test_what_is_not_decayed() -> None:
    model = timm.create_model('sl_cait', depth=1, class_depth=1)
    expected = {'pos_embed', 'cls_token'} | {
        f'{block}.0.{name}' for block in ('blocks', 'class_blocks')
        for name in ('attn.temperature', 'ls1.gamma', 'ls2.gamma')}
    assert model.no_weight_decay() == expected


def test_weights_can_be_initialised_after_to_empty() -> None:
    model = timm.create_model('sl_cait', device='meta').to_empty(device='cpu')
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert model.blocks[20].ls2.gamma[0].item() == pytest.approx(1e-5)


@pytest.mark.parametrize('kwargs', [dict(lsa_mask='paper'), dict(lsa=False, spt=False)])
@torch.no_grad()
def test_set_input_size(kwargs: dict) -> None:
    """A resized model computes what one built at that size computes."""
    model = timm.create_model('sl_cait', depth=2, **kwargs).eval()
    model.set_input_size((48, 24))
    built = timm.create_model('sl_cait', depth=2, img_size=(48, 24), **kwargs).eval()
    built.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 48, 24)
    torch.testing.assert_close(model(x), built(x))
    assert model.pos_embed.shape == (1, 72, 192)


def test_pruning_drops_the_class_blocks_with_the_head() -> None:
    model = timm.create_model('sl_cait', depth=3)
    x = torch.randn(2, 3, 32, 32)
    expected = model.eval().forward_intermediates(x, [2], norm=True, output_fmt='NLC', intermediates_only=True)[0]
    model.prune_intermediate_layers([2])
    assert len(model.blocks) == 2 and not len(model.class_blocks)
    torch.testing.assert_close(model(x), expected)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_an_authors_file_loads_as_pretrained() -> None:
    depths = dict(depth=1, class_depth=1)
    state = {key: fill(key, shape) for key, shape in shapes((32, 32), 4, 3, 10, True, True, **depths).items()}
    overlay = dict(state_dict={'model': state}, input_size=(3, 32, 32), num_classes=10)
    model = timm.create_model('sl_cait', pretrained=True, **depths, pretrained_cfg_overlay=overlay).double().eval()
    x = images([2, 3, 32, 32])
    torch.testing.assert_close(model(x), forward(x, state, 4, 'paper'), rtol=0, atol=1e-5)  # read as float32
    with pytest.raises(tinyvit_zoo.ZooError, match='temperature is not part of it'):
        timm.create_model('sl_cait', pretrained=True, **depths, lsa=False, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize('chans', [1, 4])
@torch.no_grad()
def test_pretrained_weights_take_other_channels(chans: int) -> None:
    torch.manual_seed(0)
    kwargs = dict(depth=1, class_depth=1)
    model = timm.create_model('sl_cait', **kwargs).eval()
    for parameter in model.tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    adapted = timm.create_model(
        'sl_cait', pretrained=True, in_chans=chans, **kwargs,
        pretrained_cfg_overlay=dict(state_dict=model.state_dict(), input_size=(3, 32, 32), num_classes=10)).eval()
    grey = torch.randn(2, 1, 32, 32)
    if chans == 1:
        torch.testing.assert_close(adapted(grey), model(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    assert adapted(grey.expand(-1, chans, -1, -1)).shape == (2, 10)
