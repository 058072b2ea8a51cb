"""What each way to train learns of the task and forgets of the general text, as a picture."""

import math

from matplotlib.figure import Figure

from alps.demo.results import Results
from alps.demo.ways import EVERYTHING, FROZEN, LORA, RANDOM, RANDOM_ALONE, SELECTED, SELECTED_ALONE
from alps.visual.style import INK, in_our_style
from alps.visual.style import SELECTED as ORANGE

_BLUE, _GREY = "#2171b5", "#8a9099"
_LOOKS = {
    EVERYTHING.name: ("o", _BLUE, "full"),
    FROZEN.name: ("o", _GREY, "full"),
    RANDOM.name: ("s", _GREY, "full"),
    SELECTED.name: ("s", ORANGE, "full"),
    LORA.name: ("D", _BLUE, "full"),
    RANDOM_ALONE.name: ("s", _GREY, "none"),
    SELECTED_ALONE.name: ("s", ORANGE, "none"),
}
"""Marker, colour and fill: orange is what the scan selected, hollow is alone, so that colour alone tells nothing."""


@in_our_style
def trade_off(results: Results) -> Figure:
    """Task loss against general loss: for each way to train its seeds, small, and their mean, large.

    Returns:
        A figure that pyplot does not know of.
    """
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(results.base.general, color=_GREY, linewidth=0.6, zorder=0)
    axes.axhline(results.base.task, color=_GREY, linewidth=0.6, zorder=0)
    axes.plot(
        results.base.general,
        results.base.task,
        "*",
        markersize=9,
        color=INK,
        linestyle="",
        label="base, untouched",
    )
    for way in results.ways:
        marker, colour, fill = _LOOKS[way]
        task = results.measured(way, lambda outcome: outcome.losses.task)
        general = results.measured(way, lambda outcome: outcome.losses.general)
        axes.plot(general.each, task.each, marker, markersize=2.5, color=colour, fillstyle=fill, linestyle="")
        axes.errorbar(
            general.mean,
            task.mean,
            xerr=_bar(general.spread),
            yerr=_bar(task.spread),
            fmt=marker,
            markersize=5.5,
            fillstyle=fill,
            color=colour,
            elinewidth=0.8,
            label=way,
        )
    axes.set_xlabel("loss on general text, nats per token: further right, more is forgotten")
    axes.set_ylabel("loss on the task, nats per token:\nlower, more is learnt")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def _bar(spread: float) -> float | None:
    return None if math.isnan(spread) else spread
