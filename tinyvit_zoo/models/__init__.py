"""The families. Importing this package registers every model with timm."""
# ruff: noqa: F401
import timm
from timm.models import get_pretrained_cfg, model_entrypoint

from ..errors import ZooError, nearest
from ..runtime.text import shown
from . import compact, fast_cnn, mae_lite, mae_vit, sl_cait, sl_pit, sl_swin, sl_t2t, sl_vit, ssl_small
from ._build import build_model, check_tag
from ._tokens import Layer, TokenTransformer, block_layers
from .compact import CompactTransformer
from .encoder import Recording, attention_logits, encode, image_size, record, require_plain, take_any_size
from .mae_lite import RelativeViT, timm_export
from .sl_cait import LocalCaiT
from .sl_pit import LocalPiT
from .sl_swin import LocalSwin
from .sl_t2t import LocalT2T
from .sl_vit import LocalViT
from .ssl_small import SslCaiT, SslSwin, SslViT

# Modules whose models are the zoo's. A family of another package joins by its name: see docs/extending.md.
FAMILIES = [family.__name__ for family in (
    compact, fast_cnn, mae_lite, mae_vit, sl_cait, sl_pit, sl_swin, sl_t2t, sl_vit, ssl_small)]


def list_models(pattern: str = '', pretrained: bool = False) -> list[str]:
    """List the zoo's models that match a wildcard pattern; with `pretrained`, `name.tag` of all with weights."""
    if not all(isinstance(each, str) for each in (pattern if isinstance(pattern, (list, tuple)) else [pattern])):
        raise ZooError(f'pattern is {shown(pattern)}, expected text with wildcards, as in cct_*.')
    modules = [family.rpartition('.')[2] for family in FAMILIES]  # timm knows a module by the last part of its name
    names = timm.list_models(pattern, module=modules, pretrained=pretrained)
    return [name for name in names if model_entrypoint(name).__module__ in FAMILIES]


def check_name(name: str) -> None:
    """Raise ZooError with the nearest name if the zoo has no such model; the tag is ignored."""
    architecture = name.partition('.')[0]
    if any(c in name for c in '/:='):
        raise ZooError(f'{name} does not fit here: expected NAME or NAME.TAG of the zoo.')
    if architecture not in list_models():
        raise ZooError(f'There is no model {architecture!r}.{nearest(architecture, list_models())} '
                       f'`tinyvit-zoo list` shows all.')


def with_tag(name: str) -> str:
    """Return `NAME.TAG`, with the default tag if none is given; ZooError with the nearest for an unknown one."""
    check_name(name)
    architecture, _, tag = name.partition('.')
    if tag:
        check_tag(architecture, tag)
    return f'{architecture}.{tag or get_pretrained_cfg(architecture).tag}'
