"""What models cost, beside what the papers print."""
from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ZooError
from .counting import count, fvcore_macs, peak_memory
from .subjects import make_model

# Why a paper's figure differs from the count. A test checks each reason against every figure.
NO_PRODUCTS = ("The paper leaves out attention's two products, q k^T and what the values are weighted with (and then "
               "is right within rounding and 0.1 %).")
NORMS = 'The paper adds one for each value that comes out of a LayerNorm.'
SLIPS = "The paper adds one for each value that comes out of a LayerNorm, and its own counter has slips in this family."
PADDING = ("The figure is of the authors' code, which pads a map that is smaller than a window, and projects the "
           "padding too.")
NO_ATTENTION = 'The paper has "below 270": a counter that does not know the attention modules skips them whole.'

# In millions, as printed: (image size, classes), figures, reasons
PAPERS: dict[tuple[int, int], dict[str, tuple[float, str]]] = {
    (32, 10): {
        'cct_2_3x2': (33, NO_PRODUCTS), 'cct_4_3x2': (46, NO_PRODUCTS), 'cct_6_3x1': (813, NO_PRODUCTS),
        'cct_6_3x2': (241, NO_PRODUCTS), 'cct_7_3x1': (947, NO_PRODUCTS), 'cct_7_3x2': (275, NO_PRODUCTS),
        'cvt_6_4': (202, NO_PRODUCTS), 'cvt_7_4': (236, NO_PRODUCTS), 'vit_lite_6_4': (205, NO_PRODUCTS),
        'vit_lite_7_4': (239, NO_PRODUCTS), 'vit_lite': (239, NO_PRODUCTS)},
    (224, 1000): {'cct_14_7x2': (5110, NO_PRODUCTS)},
    (384, 1000): {'cct_14_7x2': (15020, NO_PRODUCTS)},
    (64, 200): {
        'plain_vit_64': (189.8, NORMS), 'sl_vit_64': (199.2, NORMS),
        'plain_swin_64': (242.3, NORMS), 'sl_swin_64': (284.9, NORMS),
        'plain_t2t_64': (643.0, SLIPS), 'sl_t2t_64': (671.4, SLIPS),
        'plain_cait_64': (613.8, SLIPS), 'sl_cait_64': (623.3, SLIPS),
        'plain_pit_64': (279.2, SLIPS), 'sl_pit_64': (322.9, NORMS)},
    (16, 10): {'ssl_swin': (89.1, PADDING)},
    (36, 10): {'mae_vit_c10': (270, NO_ATTENTION)},
    (36, 100): {'mae_vit_c100': (270, NO_ATTENTION)},
}


def cost(name: str, num_classes: int | None = None, img_size: tuple[int, int] | None = None, batch: int = 1,
         fvcore: bool = False) -> dict[str, Any]:
    """Count a model in plain numbers: memory in bytes, `macs` of the whole batch, and a paper's where there is one."""
    if num_classes is not None and num_classes < 0:
        raise ZooError(f'num_classes is {num_classes}, expected 0 (no head) or more.')
    model = make_model(name, num_classes, img_size, device='meta')
    counted = count(model, img_size, batch)
    architecture, classes = name.partition('.')[0], int(model.num_classes)  # type: ignore[arg-type]
    height, width = counted.input_size[1:]
    figures = PAPERS.get((height, classes), {}) if height == width else {}
    printed, why = figures.get(architecture, (None, ''))
    row = {
        'name': name, 'input_size': list(counted.input_size), 'num_classes': classes, 'batch_size': batch,
        'params': counted.params, 'trainable': counted.trainable, 'frozen': counted.frozen, 'buffers': counted.buffers,
        'macs': counted.macs, 'activations': counted.activations,
        'peak_memory': peak_memory(model, img_size, batch), 'peak_training_memory': _training(model, img_size, batch),
        'parts': {part: vars(figures) for part, figures in counted.parts.items()},
        'paper_macs': printed and batch * round(printed * 1e6), 'paper_note': why}
    if fvcore:
        by_operator = fvcore_macs(make_model(name, num_classes, img_size), img_size)
        row['fvcore'] = {key: batch * macs for key, macs in by_operator.items()}
    return row


def _training(model: nn.Module, img_size: tuple[int, int] | None, batch: int) -> int | None:
    """Return None for a batch that the model cannot train on: batch norm of one value has no variance."""
    try:
        return peak_memory(model, img_size, batch, train=True)
    except ZooError:
        return None
