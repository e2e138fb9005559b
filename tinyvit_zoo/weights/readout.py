"""How the logits of weights become probabilities, kept in the metadata of their file."""
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from ..errors import ZooError
from .files import REMEDY, read_metadata, read_weights, save_weights

_KEY = 'readout'


@dataclass(frozen=True)
class Readout:
    """Probabilities: the softmax of the logits over the temperature that was fitted to validation images, if any.

    `multi_label`: an image may have several labels, and each class has the sigmoid of its logit.
    """
    temperature: float | None = None
    multi_label: bool = False

    def __call__(self, logits: Tensor) -> Tensor:
        scaled = logits / (self.temperature or 1.)
        return scaled.sigmoid() if self.multi_label else scaled.softmax(-1)

    @property
    def formula(self) -> str:
        scaled = f'logits / {self.temperature:.4g}' if self.temperature else 'logits'
        return f'{"sigmoid" if self.multi_label else "softmax"}({scaled})'

    @property
    def metadata(self) -> dict[str, str]:
        """Return the metadata to save with the weights; none for the plain softmax."""
        return {} if self == PLAIN else {_KEY: json.dumps(asdict(self))}


PLAIN = Readout()


def read_readout(path: str | Path) -> Readout:
    """Read it from the metadata of a weight file; the plain softmax where they state none."""
    text = read_metadata(path).get(_KEY, '{}')
    try:
        readout = Readout(**json.loads(text))
        good = isinstance(readout.multi_label, bool) and (readout.temperature is None or (
            type(readout.temperature) in (int, float) and 1e-3 <= readout.temperature <= 1e3))
    except (ValueError, TypeError, RecursionError) as e:
        raise ZooError(f'{path} is damaged or too new (its {_KEY} is {text[:80]}): {REMEDY}.') from e
    if not good:
        raise ZooError(f'{path} is damaged (its {_KEY} is {text[:80]}): {REMEDY}.')
    return readout


def write_readout(path: Path, readout: Readout) -> None:
    """Replace it in a safetensors file, whose tensors stay."""
    metadata = {key: text for key, text in read_metadata(path).items() if key != _KEY}
    save_weights(read_weights(path), path, {**metadata, **readout.metadata})
