"""The table of datasets: all that recipes, `--data`, cards and the Hub need to know of one.

Add one from outside by `DATASETS['key'] = Dataset('key', ...)`.

Normalization statistics are those of the authors' recipes, else those in general use (STL-10, MNIST, Fashion-MNIST) or
measured on the training images at 32 px (digits). A grey dataset repeats its one figure.
"""
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime.packaged import read_packaged

Statistics = tuple[float, float, float]
_CLASSES = {key: tuple(names) for key, names in json.loads(read_packaged('data/classes.json')).items()}
_DIGITS = tuple('0123456789')


@dataclass(frozen=True)
class Torchvision:
    """A dataset that torchvision reads, and fetches with `--download`."""
    class_name: str
    folder: str                                 # where its files lie below ROOT
    train: Mapping[str, Any]                    # arguments of the class
    test: Mapping[str, Any]
    val: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Dataset:
    """A row of the table.

    `label_names` are empty where timm has them (ImageNet). `opener` reads `--data SOURCE:PATH`: a function, or its name
    'module:function', that takes PATH and returns `splits.Parts`. Without one, the images are a plain folder or file.
    """
    key: str                                    # the dataset part of a weight's tag
    title: str
    num_classes: int
    mean: Statistics
    std: Statistics
    label_names: tuple[str, ...] = ()
    source: str = 'folder'                      # the name in `--data`
    opener: Torchvision | Callable[[str], Any] | str | None = None
    place: str = 'PATH'                         # after the name and a colon; '': nothing
    mirrored: bool = True                       # whether flipped images stay of their class
    num_train: int = 0                          # training images; 0: not known
    hub_id: str = ''                            # on the Hugging Face Hub
    about: str = ''                             # for model cards: its origin, size, licence and traps

    @property
    def spec(self) -> str:
        """Return `--data` for this dataset."""
        return f'{self.source}:{self.place}' if self.place else self.source


_TRAIN_TEST = {'train': True}, {'train': False}
_NAMED = {'split': 'train'}, {'split': 'test'}
DATASETS = {row.key: row for row in (
    Dataset(
        'c10', 'CIFAR-10', 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _CLASSES['c10'],
        'cifar10', Torchvision('CIFAR10', 'cifar-10-batches-py', *_TRAIN_TEST), hub_id='uoft-cs/cifar10',
        num_train=50_000,
        about='CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images, 32 px, 6,000 for each of ten '
              'classes. Found on the web in 2006 to 2008; about 3 % of the test images have near duplicates among the '
              'training images (arXiv:1902.00423). For research; no licence is stated.'),
    Dataset(
        'c100', 'CIFAR-100', 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), _CLASSES['c100'],
        'cifar100', Torchvision('CIFAR100', 'cifar-100-python', *_TRAIN_TEST), hub_id='uoft-cs/cifar100',
        num_train=50_000,
        about='CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images, 32 px, 600 for each of 100 '
              'classes. Found on the web in 2006 to 2008; about 10 % of the test images have near duplicates among the '
              'training images (arXiv:1902.00423). Five classes are of people. For research; no licence is stated.'),
    Dataset(
        'fl102', 'Flowers-102', 102, (0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698), _CLASSES['fl102'],
        'flowers102', Torchvision('Flowers102', 'flowers-102', *_NAMED, val={'split': 'val'}),
        num_train=1_020,
        about='Flowers-102 (Nilsback and Zisserman, 2008): 1,020 training, 1,020 validation and 6,149 test images of '
              'flowers common in Britain.'),
    Dataset(
        'svhn', 'SVHN', 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), _DIGITS,
        'svhn', Torchvision('SVHN', 'train_32x32.mat', *_NAMED), mirrored=False, hub_id='ufldl-stanford/svhn',
        num_train=73_257,
        about='SVHN (Netzer et al., 2011): 73,257 training and 26,032 test images, 32 px, of digits on house numbers, '
              'partly with neighbouring digits. For non-commercial use.'),
    Dataset(
        'timnet', 'Tiny-ImageNet', 200, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), _CLASSES['timnet'],
        'tiny_imagenet', 'tinyvit_zoo.data.folders:open_tiny_imagenet', hub_id='zh-plus/tiny-imagenet',
        num_train=100_000,
        about='Tiny-ImageNet (Stanford CS231n): 100,000 training and 10,000 validation images of 200 classes, from '
              'ImageNet, reduced to 64 px. Figures are measured on the validation images. '
              "ImageNet's terms: non-commercial research."),
    Dataset(
        'cinic10', 'CINIC-10', 10, (0.47889, 0.47228, 0.43047), (0.24206, 0.23828, 0.25875), _CLASSES['c10'],
        'cinic10', 'tinyvit_zoo.data.folders:open_cinic10', hub_id='flwrlabs/cinic10',
        num_train=90_000,
        about='CINIC-10 (Darlow et al., 2018): 90,000 images each for training, validation and test, 32 px, from '
              'CIFAR-10 and, mostly, reduced ImageNet images, with some label noise.'),
    Dataset(
        'stl10', 'STL-10', 10, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), _CLASSES['stl10'],
        'stl10', Torchvision('STL10', 'stl10_binary', *_NAMED),
        num_train=5_000,
        about='STL-10 (Coates et al., 2011): 5,000 training and 8,000 test images with labels, 96 px, from ImageNet.'),
    Dataset(
        'mnist', 'MNIST', 10, (0.1307,) * 3, (0.3081,) * 3, _DIGITS,
        'mnist', Torchvision('MNIST', 'MNIST/raw', *_TRAIN_TEST), mirrored=False, hub_id='ylecun/mnist',
        num_train=60_000,
        about='MNIST (LeCun et al., 1998): 60,000 training and 10,000 test images of digits, grey, 28 px.'),
    Dataset(
        'fmnist', 'Fashion-MNIST', 10, (0.2860,) * 3, (0.3530,) * 3, _CLASSES['fmnist'],
        'fashion_mnist', Torchvision('FashionMNIST', 'FashionMNIST/raw', *_TRAIN_TEST),
        hub_id='zalando-datasets/fashion_mnist',
        num_train=60_000,
        about='Fashion-MNIST (Xiao et al., 2017): 60,000 training and 10,000 test images of clothes, grey, 28 px. '
              'MIT.'),
    Dataset(
        'digits', 'digits', 10, (0.3087,) * 3, (0.3482,) * 3, _DIGITS,
        'digits', 'tinyvit_zoo.data.sources:open_digits', place='', mirrored=False,
        num_train=1_437,
        about='The test part of the Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), from '
              'scikit-learn: 1,797 grey images of 8 x 8 pixels, enlarged here. CC BY 4.0. A toy data set: its figures '
              'say little about other images.'),
    Dataset(
        'in1k', 'ImageNet-1k', 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), hub_id='ILSVRC/imagenet-1k',
        num_train=1_281_167,
        about='ImageNet-1k (Russakovsky et al., 2015): 1.28 million training and 50,000 validation images of 1,000 '
              'classes from the web, mostly from North America and Europe, including people. Figures are measured on '
              'the validation images. Terms: non-commercial research.'),
)}


def spec_of(key: str) -> str:
    """Return `--data` for a recipe's dataset; a folder where that is not in the table."""
    return DATASETS[key].spec if key in DATASETS else 'folder:PATH'
