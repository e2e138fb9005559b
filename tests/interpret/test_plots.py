"""Pictures show the numbers."""


import numpy as np
import torch
from interpret_cases import batch, create

from tinyvit_zoo.interpret.attention import reach
from tinyvit_zoo.interpret.plots import plot_reach


def test_boxes_show_the_numbers() -> None:
    model = create('sl_pit')
    found = reach(model, [batch()])
    figure = plot_reach({'a': found, 'b': found})
    dots = [line.get_ydata() for axes in figure.axes[:2] for line in axes.lines if line.get_label() == 'a head']
    for drawn, values in zip(dots, (found.distance, found.entropy), strict=True):
        np.testing.assert_allclose(drawn, torch.cat(values))
