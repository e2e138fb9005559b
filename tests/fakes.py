"""Small data sets written as the published ones lie on disk, with random pixels."""
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

rng = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def image_folder(root: Path, classes: dict[str, int], size: int = 8, ending: str = 'png') -> Path:
    """`classes` says how many images each class folder gets."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(pixels(size, size, 3)).save(root / name / f'{i:03}.{ending}')
    return root


def trust_files(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """torchvision compares checksums, which no small file has: let it see only whether the file is there."""
    monkeypatch.setattr(f'torchvision.datasets.{module}.check_integrity', lambda path, md5=None: Path(path).is_file())


def _pickle(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def cifar10(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The training images [50, 32, 32, 3] and their labels; ten more are the test."""
    images, labels, folder = pixels(60, 32, 32, 3), np.arange(60) % 10, root / 'cifar-10-batches-py'
    for i, name in enumerate([*(f'data_batch_{n}' for n in range(1, 6)), 'test_batch']):
        part = slice(10 * i, 10 * i + 10)
        rows = images[part].transpose(0, 3, 1, 2).reshape(10, -1)
        _pickle(folder / name, {'data': rows, 'labels': labels[part].tolist()})
    _pickle(folder / 'batches.meta', {'label_names': list('abcdefghij')})
    return images[:50], labels[:50]


def cifar100(root: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels, folder = pixels(200, 32, 32, 3), np.arange(200) % 100, root / 'cifar-100-python'
    for name, part in (('train', slice(0, 100)), ('test', slice(100, 200))):
        rows = images[part].transpose(0, 3, 1, 2).reshape(100, -1)
        _pickle(folder / name, {'data': rows, 'fine_labels': labels[part].tolist(), 'coarse_labels': [0] * 100})
    _pickle(folder / 'meta', {'fine_label_names': [str(i) for i in range(100)]})
    return images[:100], labels[:100]


def mnist(root: Path, folder: str = 'MNIST') -> tuple[np.ndarray, np.ndarray]:
    """The idx files of MNIST and Fashion-MNIST: big-endian header, then bytes."""
    raw = root / folder / 'raw'
    raw.mkdir(parents=True)
    images, labels = pixels(30, 28, 28), (np.arange(30) % 10).astype(np.uint8)
    for name, part in (('train', slice(0, 20)), ('t10k', slice(20, 30))):
        for kind, array in (('images-idx3', images[part]), ('labels-idx1', labels[part])):
            header = np.array([0x0800 + array.ndim, *array.shape], dtype='>i4')
            (raw / f'{name}-{kind}-ubyte').write_bytes(header.tobytes() + array.tobytes())
    return images[:20], labels[:20]


def svhn(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """MATLAB files, images last, the digit 0 labelled 10."""
    from scipy.io import savemat
    images, labels = pixels(30, 32, 32, 3), np.arange(30) % 10
    root.mkdir(parents=True, exist_ok=True)
    for name, part in (('train', slice(0, 20)), ('test', slice(20, 30))):
        y = np.where(labels[part] == 0, 10, labels[part]).astype(np.uint8)[:, None]
        savemat(root / f'{name}_32x32.mat', {'X': images[part].transpose(1, 2, 3, 0), 'y': y})
    return images[:20], labels[:20]


def stl10(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Raw bytes, channel after channel, each column by column; labels from 1."""
    folder = root / 'stl10_binary'
    folder.mkdir(parents=True)
    images, labels = pixels(30, 96, 96, 3), np.arange(30) % 10
    for name, part in (('train', slice(0, 20)), ('test', slice(20, 30))):
        (folder / f'{name}_X.bin').write_bytes(images[part].transpose(0, 3, 2, 1).tobytes())
        (folder / f'{name}_y.bin').write_bytes((labels[part] + 1).astype(np.uint8).tobytes())
    (folder / 'unlabeled_X.bin').write_bytes(b'')
    return images[:20], labels[:20]


def flowers102(root: Path) -> None:
    """Nine images of three classes, three for each split; labels from 1."""
    from scipy.io import savemat
    folder = root / 'flowers-102'
    (folder / 'jpg').mkdir(parents=True)
    for i in range(1, 10):
        Image.fromarray(pixels(20, 30, 3)).save(folder / 'jpg' / f'image_{i:05}.jpg')
    savemat(folder / 'imagelabels.mat', {'labels': [[1, 2, 3] * 3]})
    savemat(folder / 'setid.mat', {'trnid': [[1, 2, 3]], 'valid': [[4, 5, 6]], 'tstid': [[9, 8, 7]]})


def tiny_imagenet(root: Path) -> None:
    """Three classes; of four training images each, one is grey, as some of the published ones are."""
    ids = ('n02', 'n01', 'n03')
    for name in ids:
        image_folder(root / 'train' / name, {'images': 3}, 64, 'JPEG')
        Image.fromarray(pixels(64, 64)).save(root / 'train' / name / 'images' / 'grey.JPEG')
        (root / 'train' / name / f'{name}_boxes.txt').write_text('000.JPEG\t0\t0\t9\t9\n')
    image_folder(root / 'val', {'images': 6}, 64, 'JPEG')
    rows = [f'{i:03}.JPEG\t{ids[i % 3]}\t0\t32\t44\t62\n' for i in range(6)]
    (root / 'val' / 'val_annotations.txt').write_text(''.join(rows))
    image_folder(root / 'test', {'images': 2}, 64, 'JPEG')
    (root / 'words.txt').write_text('n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn03\tslug\nn99\tunused\n')
