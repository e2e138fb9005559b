"""The whole augmentation and mixing against timm's and torchvision's."""
import random
from unittest import mock

import numpy as np
import pytest
import torch
from augment_cases import MEAN, STD, assert_levels, augmentation, batch, from_pil, generator, picture, to_pil
from PIL import Image, ImageFilter, ImageOps
from timm.data import Mixup, RandomResizedCropAndInterpolation, create_transform, mixup as tm
from torchvision import transforms
from torchvision.transforms import functional as TF

from tinyvit_zoo.augment import batched as augment_module
from tinyvit_zoo.augment.batched import Mix, mix, normalize
from tinyvit_zoo.errors import ZooError


@pytest.mark.parametrize('size, ratio', [((32, 32), (3 / 4, 4 / 3)), ((24, 40), (3 / 4, 4 / 3)), ((10, 90), (0.9, 1.1)),
                                         ((90, 10), (0.9, 1.1))])
def test_crop_boxes_are_timms(size: tuple[int, int], ratio: tuple[float, float]) -> None:
    """The same distribution: mean and spread of each side and corner; in the last two cases often no attempt fits."""
    n, scale = 4000, (0.3, 1.)
    crop = augmentation(size, MEAN, STD, crop_scale=scale, crop_ratio=ratio).crop
    ours = torch.stack(crop._boxes(torch.rand(crop.uniforms - 2, n), size, scale))
    random.seed(0)
    image = Image.new('RGB', size[::-1])
    theirs = torch.tensor([RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(n)]).T
    torch.testing.assert_close(ours.mean(1), theirs.float().mean(1), rtol=0.05, atol=0.15)
    torch.testing.assert_close(ours.std(1), theirs.float().std(1), rtol=0.08, atol=0.1)
    top, left, height, width = ours
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    if max(size) < 3 * min(size):                               # else the box is in the middle
        assert (top + height == size[0]).any() and (left + width == size[1]).any() and (top == 0).any()


@pytest.mark.parametrize('size', [(32, 32), (28, 36)])
def test_padded_crop(size: tuple[int, int]) -> None:
    """Every place of the window in the padded image, and no other; as torchvision's pad, crop and flip."""
    image = picture(*size)
    images = torch.from_numpy(image).permute(2, 0, 1).expand(3000, -1, -1, -1)
    got = augmentation(size, (0.,), (1 / 255,), crop_padding=2, flip=0.5)(images, generator()).round().to(torch.uint8)
    padded = TF.pad(to_pil(images[0]), 2)
    want = {}
    for top in range(5):
        for left in range(5):
            window = TF.crop(padded, top, left, *size)
            want[from_pil(window).numpy().tobytes()] = (top, left, False)
            want[from_pil(TF.hflip(window)).numpy().tobytes()] = (top, left, True)
    seen = [want[x.numpy().tobytes()] for x in got]
    assert len(set(seen)) == 50
    assert abs(sum(flip for _, _, flip in seen) / 3000 - 0.5) < 0.05


def test_crop_to_another_size() -> None:
    images = batch(4, 40, 30)
    assert augmentation((16, 20), MEAN, STD, crop_scale=(0.2, 1.))(images, generator()).shape == (4, 3, 16, 20)
    assert augmentation((32, 32), MEAN, STD, crop_padding=4)(images, generator()).shape == (4, 3, 32, 32)
    got = augmentation((16, 20), (0.,), (1 / 255,))(images, generator()).round()
    want = torch.stack([from_pil(TF.resize(to_pil(x), [16, 20])) for x in images])
    assert_levels(got, want, 1, 0.3)                            # by 2.5 and 1.5: halves in plenty
    with pytest.raises(ZooError, match='too small for a crop'):
        augmentation((32, 40), MEAN, STD, crop_padding=4)(images, generator())


def test_grey_blur_and_solarise() -> None:
    images = batch(1).expand(400, -1, -1, -1)
    plain = {'mean': (0.,), 'std': (1 / 255,)}
    for kwargs, wanted in (({'grey': 0.3}, transforms.Grayscale(3)), ({'solarize': 0.3}, ImageOps.solarize)):
        got = augmentation((32, 32), **plain, **kwargs)(images, generator()).round().to(torch.uint8)
        changed = (got != images).flatten(1).any(1)
        assert abs(changed.float().mean() - 0.3) < 0.1
        want = from_pil(wanted(to_pil(images[0])))
        assert (got[changed] == want).all() and (got[~changed] == images[0]).all()
    got = augmentation((32, 32), **plain, blur=0.5, blur_sigma=(0.5, 2.))(images, generator())
    changed = (got.round() != images).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.5) < 0.1
    rough = got[changed].diff(dim=3).abs().mean((1, 2, 3))
    assert len(rough.unique()) > 100                # each image its own radius
    bounds = [from_pil(to_pil(images[0]).filter(ImageFilter.GaussianBlur(r))).float().diff(dim=2).abs().mean()
              for r in (0.5, 2.)]
    assert bounds[1] - 0.1 <= rough.min() < bounds[1] + 0.3 and bounds[0] - 0.5 < rough.max() <= bounds[0] + 0.1


FULL = {'flip': 0.5, 'crop_scale': (0.8, 1.), 'auto_augment': 'rand-m9-mstd0.5-inc1', 'interpolation': 'random'}
VIEWS = {'flip': 0.5, 'crop_scale': (0.2, 1.), 'interpolation': 'bicubic', 'color_jitter': (0.4, 0.4, 0.2, 0.1),
         'color_jitter_prob': 0.8, 'grey': 0.2, 'blur': 0.5, 'solarize': 0.2, 'erase': 0.3, 'erase_mode': 'const'}
RECIPES = [FULL, VIEWS, {'flip': 0.5, 'crop_padding': 4, 'auto_augment': 'cifar10', 'erase': 0.25}, {}]


@pytest.mark.parametrize('kwargs', RECIPES)
def test_the_generator_decides_alone(kwargs: dict) -> None:
    images = batch(1).expand(48, -1, -1, -1)
    augment, numbers = augmentation((32, 32), MEAN, STD, **kwargs), generator(5)
    kept = images.clone()
    others = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    first = augment(images, numbers)
    state = numbers.get_state()
    second = augment(images, numbers)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(augment(images, resumed), second)
    assert torch.equal(augmentation((32, 32), MEAN, STD, **kwargs)(images, generator(5)), first)
    assert torch.equal(others[0], torch.get_rng_state()) and others[1] == random.getstate()
    assert others[2] == np.random.get_state()[1].tobytes() and torch.equal(images, kept)
    assert first.dtype == torch.float32 and first.shape == images.shape and first.is_contiguous()
    if kwargs:
        assert not torch.equal(first, second)
        assert len(first.flatten(1).unique(dim=0)) > 40         # each image its own parameters
    else:
        assert torch.equal(first, normalize(images, MEAN, STD))


@pytest.mark.parametrize('kwargs', [FULL, VIEWS, RECIPES[2] | {'erase_mode': 'const'}])
@pytest.mark.parametrize('channels', [1, 3])
def test_both_ways_give_the_same_bits(kwargs: dict, channels: int) -> None:
    """Each operation on its images, as on the CPU, and each on all of them, as elsewhere."""
    images = batch(40, 26, 37, channels)
    augment = augmentation((24, 28), MEAN[:channels], STD[:channels], **kwargs)
    sparse = augment(images, generator())
    augment.dense = True
    assert torch.equal(augment(images, generator()), sparse)


def test_the_way_of_a_gpu_waits_for_nothing() -> None:
    """A tensor without data cannot be counted or looked at."""
    images = torch.empty(8, 3, 32, 32, dtype=torch.uint8, device='meta')
    for kwargs in RECIPES[:3]:
        augment = augmentation((32, 32), MEAN, STD, **kwargs)
        u = torch.empty(augment.crop.uniforms + sum(p.uniforms for p in augment.policies), 8, device='meta')
        assert augment._augment(images, u).shape == images.shape
        if augment.erase.prob:
            u = torch.empty(augment.erase.uniforms, 8, device='meta')
            assert augment.erase(images.float(), u, None, None).shape == images.shape


def test_compiles_as_one_graph() -> None:
    augment = augmentation((16, 16), MEAN, STD, flip=0.5, crop_padding=2, auto_augment='rand-n1-t3a', erase=0.25)
    images = batch(16, 16, 16)
    augment.dense = True
    want = augment(images, generator())
    compile_ = torch.compile
    with mock.patch('torch.compile', lambda f, **kw: compile_(f, backend='eager', fullgraph=True, **kw)):
        augment.compile()
    assert torch.equal(augment(images, generator()), want)


def test_chunks_autocast_and_strides_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    augment, images = augmentation((32, 32), MEAN, STD, **FULL), batch(20)
    want = augment(images, generator())
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(augment(images, generator()), want)
    assert torch.equal(augment(images.to(memory_format=torch.channels_last), generator()), want)
    monkeypatch.setattr(augment_module, '_CHUNK_CPU', 7 * 3 * 32 * 32)
    assert torch.equal(augment(images, generator()), want)
    assert augment(images[:0], generator()).shape == (0, 3, 32, 32)


def test_the_whole_is_distributed_as_timms() -> None:
    """Mean and spread of every pixel of one image, over many draws of both pipelines."""
    image = batch(1)
    theirs = create_transform(32, is_training=True, scale=(0.8, 1.), hflip=0.5, interpolation='bilinear', mean=MEAN,
                              std=STD, auto_augment='rand-m5-mstd0.5-inc1', color_jitter=None)
    n = 1500
    random.seed(0)
    np.random.seed(0)
    want = torch.stack([theirs(to_pil(image[0])) for _ in range(n)])
    ours = augmentation(
        (32, 32), MEAN, STD, **FULL | {'auto_augment': 'rand-m5-mstd0.5-inc1', 'interpolation': 'bilinear'})
    got = ours(image.expand(n, -1, -1, -1), generator())
    # a mean of n draws with a deviation of about 0.8 is known to 0.03; of two, over 3072 pixels, 5 of those
    assert (got.mean(0) - want.mean(0)).abs().max() < 0.2 and (got.mean() - want.mean()).abs() < 0.05
    assert (got.std(0) - want.std(0)).abs().mean() < 0.03


def test_normalize_is_to_tensor_and_normalize() -> None:
    images = batch(2, 9, 11)
    want = torch.stack([transforms.Normalize(MEAN, STD)(TF.to_tensor(to_pil(x))) for x in images])
    torch.testing.assert_close(normalize(images, MEAN, STD), want, rtol=1e-5, atol=1e-5)
    one = normalize(batch(2, 9, 11, 5), (0.5,), (0.25,))
    torch.testing.assert_close(one, (batch(2, 9, 11, 5) / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('channels', [1, 4, 5])
def test_augment_takes_any_channels(channels: int) -> None:
    images = batch(30, 30, 22, channels)
    for mean in (MEAN[:1], (0.4,) * channels):
        more = {'erase': 0.5, 'grey': 0.2, 'color_jitter': (0.4, 0.4, 0.4, 0.)}
        augment = augmentation((24, 20), mean, mean, **FULL | more)
        got = augment(images, generator())
        assert got.shape == (30, channels, 24, 20) and got.isfinite().all()


@pytest.mark.parametrize('size', [(32, 32), (20, 48)])
def test_erasing_is_timms(size: tuple[int, int]) -> None:
    """One rectangle in a share of the images: its area and aspect, everywhere; normal noise, or 0."""
    n, area, aspect = 3000, (0.05, 0.25), (0.4, 2.)
    images = torch.full((n, 2, *size), 200, dtype=torch.uint8)
    plain = (200 / 255 - 0.1) / 0.3
    got = augmentation(size, (0.1,), (0.3,), erase=0.6, erase_area=area, erase_aspect=aspect)(images, generator())
    holes = (got - plain).abs() > 1e-4
    on = holes.flatten(1).any(1)
    assert abs(on.float().mean() - 0.6) < 0.04
    assert torch.equal(holes[:, 0], holes[:, 1]) or (holes[:, 0] != holes[:, 1]).sum() < 20   # noise may hit the value
    holes = holes.any(1)[on]
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    pixels = holes.sum((1, 2))
    assert ((heights * widths) - pixels).max() <= 1             # rectangles
    share = pixels / (size[0] * size[1])
    assert area[0] * 0.8 < share.min() < area[0] * 1.2 and area[1] * 0.85 < share.max() < area[1] * 1.15
    ratio = heights / widths
    assert ratio.min() > aspect[0] * 0.75 and ratio.max() < aspect[1] * 1.35
    noise = got[on].transpose(0, 1)[:, holes]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert holes[:, 0].any() and holes[:, -1].any() and holes[:, :, 0].any() and holes[:, :, -1].any()
    const = augmentation(size, (0.1,), (0.3,), erase=1., erase_mode='const')(images, generator())
    assert (((const - plain).abs() < 1e-4) | (const == 0)).all()
    assert (const == 0).flatten(1).any(1).float().mean() > 0.95


def timm_mixing(mode: str, seed: int, n: int, size: tuple[int, int], alphas: tuple[float, float],
                ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """timm's images and targets, and what it drew for them: its draws are repeated in its order."""
    mixer = Mixup(*alphas, mode=mode, prob=0.9, label_smoothing=0.1, num_classes=7)
    torch.manual_seed(seed)
    x, labels = torch.randn(n, 3, *size), torch.randint(0, 7, (n,))
    np.random.seed(seed)
    got, targets = mixer(x.clone(), labels)
    np.random.seed(seed)
    lam, cut = mixer._params_per_elem(n) if mode == 'elem' else mixer._params_per_batch()
    lam, cut = np.atleast_1d(lam), np.atleast_1d(cut) & (np.atleast_1d(lam) < 1)
    centres = [[np.random.randint(0, side) if c else 0 for side in size] for c in cut]
    row, column = torch.tensor(centres, dtype=torch.float32).unbind(1)
    return got, targets, {'x': x, 'labels': labels, 'lam': torch.tensor(lam, dtype=torch.float32),
                          'cut': torch.tensor(cut), 'row': row, 'column': column}


@pytest.mark.parametrize('mode', ['batch', 'elem'])
@pytest.mark.parametrize('alphas', [(0.8, 0.), (0., 1.), (0.8, 1.)], ids=['mixup', 'cutmix', 'both'])
@pytest.mark.parametrize('size', [(32, 32), (17, 24)])
def test_mixing_is_timms(mode: str, alphas: tuple[float, float], size: tuple[int, int]) -> None:
    """The same numbers from the same lam and rectangle, up to float32's rounding of lam."""
    for seed in range(12):
        got, targets, drawn = timm_mixing(mode, seed, 6, size, alphas)
        plain = tm.mixup_target(drawn['labels'], 7, 1., 0.1)
        x, mixed = mix(drawn['x'], plain, drawn['lam'], drawn['cut'], drawn['row'], drawn['column'])
        torch.testing.assert_close(x, got, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mixed, targets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mode', ['batch', 'elem'])
def test_mix_draws_as_timm(mode: str) -> None:
    """lam from the beta distributions, cutmix in its share, each image or each batch its own, from the generator."""
    x = torch.zeros(400, 1, 16, 16)
    x[200:] = 1
    labels = torch.zeros(400, dtype=torch.long)
    labels[200:] = 1
    numbers, others = generator(), torch.get_rng_state()
    both = Mix(2, 0.4, 1., prob=0.8, switch_prob=0.3, mode=mode)
    shares, cut, whole = [], [], []
    for _ in range(300 if mode == 'batch' else 6):
        got, targets = both(x, labels, numbers)
        part = got[:200].mean((1, 2, 3))                        # of the second class
        torch.testing.assert_close(part, targets[:200, 1], rtol=1e-4, atol=1e-5)
        shares += part.tolist() if mode == 'elem' else [part[0].item()]
        cut.append((got[:200] * (1 - got[:200]) == 0).flatten(1).all(1) & (part > 0))
        whole.append(part == 0)
        assert mode == 'elem' or len(targets[:200].unique(dim=0)) == 1
        assert mode == 'batch' or len(targets[:200, 1].unique()) > 100
    assert torch.equal(others, torch.get_rng_state())
    rate = torch.cat(whole).float().mean() - 0.2
    assert -0.06 < rate < 0.09                                  # and a few cuts of no area
    assert abs(torch.cat(cut).float().mean() - 0.8 * 0.3) < 0.08
    mixup = Mix(2, 0.4, mode='elem')
    lam = torch.cat([1 - mixup(x, labels, numbers)[1][:200, 1] for _ in range(20)])
    beta = torch.distributions.Beta(0.4, 0.4)
    assert abs(lam.mean() - 0.5) < 0.02 and abs(lam.std() - beta.stddev) < 0.02


def test_mix_without_mixing_smooths() -> None:
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 2, 1])
    got, targets = Mix(4, smoothing=0.2)(x, labels, generator())
    assert torch.equal(got, x)
    torch.testing.assert_close(targets, tm.mixup_target(labels, 4, 1., 0.2))
    several = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    targets = Mix(4, smoothing=0.2)(x, several, generator())[1]
    torch.testing.assert_close(targets, tm.mixup_target(several, 4, 1., 0.2, multi_label=True))
    got, targets = Mix(4, 1., 1., prob=0.)(x, labels, generator())
    assert torch.equal(got, x) and torch.equal(targets, torch.eye(4)[labels])


@pytest.mark.parametrize('kwargs, text', [
    ({'auto_augment': 'cifar'}, "Did you mean cifar10"),
    ({'auto_augment': 'rand-m9-msdt0.5'}, "unknown section 'msdt0.5'. Did you mean mstd"),
    ({'auto_augment': 'rand-m9-tweight'}, 'Did you mean tweights'),
    ({'auto_augment': 'rand-m9.5'}, "needs a whole number after 'm': got '9.5'"),
    ({'auto_augment': 'rand-mstd'}, "needs a number after 'mstd': got ''"),
    ({'auto_augment': 'rand-m9-p2'}, 'a probability of 2'),
    ({'auto_augment': 'rand-n0'}, 'has 0 layers'),
    ({'auto_augment': 'rand-n15-t3aw'}, 'n14 at most'),
    ({'auto_augment': 'rand--m9'}, "unknown section ''"),
    ({'interpolation': 'bilinaer'}, "expected 'bilinear' or 'bicubic' or 'random'"),
    ({'erase_mode': 'pixels'}, "expected 'pixel' or 'const'"),
    ({'flip': 1.5}, 'flip is 1.5, expected 0 to 1'),
    ({'crop_scale': (0.8, 1.2)}, 'crop_scale'),
    ({'crop_ratio': (0.8, float('inf'))}, 'crop_ratio'),
    ({'crop_scale': (0.8, 1.), 'crop_padding': 4}, 'one of them'),
    ({'color_jitter': (0.4, 0.4, 0.4, 0.6)}, 'colour jitter'),
    ({'blur': 0.5, 'blur_sigma': (2., 0.1)}, 'blur_sigma'),
    ({'std': (0.2, 0.2)}, 'cannot normalize'),
])
def test_mistakes_are_named(kwargs: dict, text: str) -> None:
    with pytest.raises(ZooError) as caught:
        augmentation((32, 32), **({'mean': MEAN, 'std': STD} | kwargs))
    assert text in str(caught.value) and r'\n' not in str(caught.value)


def test_mistakes_at_the_call_are_named() -> None:
    augment = augmentation((32, 32), MEAN, STD)
    for images, text in ((torch.zeros(2, 3, 32, 32), 'takes uint8 images'), (batch(1)[0], 'takes uint8 images'),
                         (batch(1, 32, 32, 4), 'Images of 4 channels do not fit a mean of 3')):
        with pytest.raises(ZooError, match=text):
            augment(images, generator())
    with pytest.raises(ZooError, match='The generator is on cpu'):
        augment(torch.empty(1, 3, 32, 32, dtype=torch.uint8, device='meta'), generator())
    with pytest.raises(ZooError, match="expected 'batch' or 'elem'"):
        Mix(10, 0.5, mode='element')
    with pytest.raises(ZooError, match='mixup is -0'):
        Mix(10, -0.5)
