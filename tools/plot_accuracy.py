"""Draw accuracy against multiply-adds for MODEL_CARDS.md. `update_docs.py` writes the picture."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyvit_zoo.publish.cards import cost, in_order
from tinyvit_zoo.runtime.files import new_figure, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = dict[str, Any]      # name, panel, family, macs (millions), top1, measured
PANELS = {'c10': 'CIFAR-10', 'c100': 'CIFAR-100'}      # the others share the third
COLOURS = {'vit_lite': 'tab:green', 'cvt': 'tab:orange', 'cct': 'tab:blue', 'sl': 'tab:red', 'plain': 'tab:brown',
           'ssl': 'tab:purple', 'mae': 'tab:pink', 'fast_cnn': 'tab:gray'}


def points() -> list[Point]:
    """Make a point for all weights with a figure: the measured one, if there is one."""
    shown = []
    for weight in in_order():
        figures = weight.measured or weight.published
        if figures:
            family = next(name for name in COLOURS if weight.name.startswith(f'{name}_'))
            panel = PANELS.get(weight.dataset, 'other data sets')
            label = weight.name if weight.dataset in PANELS else f'{weight.name} ({weight.data.title})'
            shown.append({
                'name': label, 'panel': panel, 'family': family, 'macs': round(cost(weight).macs / 1e6, 3),
                'top1': figures['top1'], 'measured': weight.measured is not None})
    return shown


def draw(shown: list[Point]) -> Figure:
    require_matplotlib()
    from matplotlib.lines import Line2D

    panels = [title for title in (*PANELS.values(), 'other data sets') if any(p['panel'] == title for p in shown)]
    groups = [sorted((p for p in shown if p['panel'] == title), key=lambda p: p['top1']) for title in panels]
    figure, axes = new_figure(
        len(panels), 1, (9, 1.2 * len(panels) + 0.21 * len(shown)), height_ratios=[6 + len(group) for group in groups])
    for axis, title, group in zip(axes[:, 0], panels, groups, strict=True):
        _panel(axis, title, group)
    families = [name for name in COLOURS if any(p['family'] == name for p in shown)]
    handles = [Line2D([], [], marker='o', linestyle='', color=COLOURS[name], label=name) for name in families]
    for fill, label in (('grey', 'measured by us'), ('white', 'published only')):
        handles.append(Line2D([], [], marker='o', linestyle='', color='grey', markerfacecolor=fill, label=label))
    figure.legend(handles=handles, loc='outside upper center', ncols=len(handles), frameon=False)
    return figure


def _panel(axis: Axes, title: str, group: list[Point]) -> None:
    """Draw a panel, with names in a column to the right by accuracy, each with a line to its point."""
    from matplotlib.ticker import LogLocator

    axis.set(xscale='log', title=title, xlabel='million multiply-adds an image', ylabel='top-1, %')
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter('{x:,.0f}')
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.margins(0.08, 0.12)
    for p in group:
        colour = COLOURS[p['family']]
        axis.plot(p['macs'], p['top1'], 'o', color=colour, markerfacecolor=colour if p['measured'] else 'white')
    for i, p in enumerate(group):
        axis.annotate(
            f'{p["name"]}  {p["top1"]:.2f}', (p['macs'], p['top1']), xytext=(1.04, (i + 0.5) / len(group)),
            textcoords='axes fraction', va='center', fontsize=8, annotation_clip=False,
            arrowprops=dict(arrowstyle='-', relpos=(0., 0.5), color='grey', alpha=0.4, linewidth=0.6))
