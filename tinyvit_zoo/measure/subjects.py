"""From names, the zoo's or timm's, to models without weights."""
from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..errors import ZooError
from ..models import list_models
from ..runtime.text import one_line
from ..weights.resolve import check_model, create_model


def find_names(patterns: Sequence[str]) -> list[str]:
    """Return each name once: as given, the zoo's models that match a wildcard, or all of the zoo's without patterns."""
    names: dict[str, None] = {}
    for pattern in patterns or ['*']:
        if any(c in pattern for c in '*?['):
            matches = [name for name in list_models() if fnmatchcase(name, pattern)]
            if not matches:
                raise ZooError(f'No model of the zoo matches {pattern!r}: `tinyvit-zoo list` shows all.')
            names.update(dict.fromkeys(matches))
        else:
            check_model(pattern)
            names[pattern] = None
    return list(names)


def make_model(
        name: str, num_classes: int | None = None, img_size: tuple[int, int] | None = None, device: str = 'cpu',
) -> nn.Module:
    """Build a model without weights, for `img_size` where its constructor takes one (a ResNet takes any images)."""
    kwargs: dict[str, Any] = {} if num_classes is None else {'num_classes': num_classes}
    try:
        return create_model(name, img_size, device=device, **kwargs)
    except ZooError:
        raise
    except (TypeError, RuntimeError, ValueError, AssertionError) as e:  # timm's own ways to refuse
        raise ZooError(f'{name} cannot be built so: {one_line(e)}') from e
