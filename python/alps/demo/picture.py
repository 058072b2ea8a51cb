"""What each way to train learns of the task and forgets of the general text, as a picture."""

import math

from matplotlib.figure import Figure

from alps.demo.results import Results

_COLOURS = ("#000000", "#999999", "#56B4E9", "#0072B2", "#CC79A7", "#E69F00", "#D55E00")
"""Those of Okabe and Ito, which colour-blind people can tell apart."""
_MARKERS = "osDPXv^"


def trade_off(results: Results) -> Figure:
    """Task loss against general loss: for each way to train its seeds, small, and their mean, large.

    Returns:
        A figure that pyplot does not know of.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(results.base.general, color="#bbbbbb", linewidth=1)
    axes.axhline(results.base.task, color="#bbbbbb", linewidth=1)
    axes.plot(results.base.general, results.base.task, "*", markersize=13, color="#444444", label="base, untouched")
    for way, colour, marker in zip(results.ways, _COLOURS, _MARKERS, strict=True):
        task = results.measured(way, lambda outcome: outcome.losses.task)
        general = results.measured(way, lambda outcome: outcome.losses.general)
        axes.plot(general.each, task.each, marker, markersize=3.5, color=colour, alpha=0.6)
        axes.errorbar(
            general.mean,
            task.mean,
            xerr=_bar(general.spread),
            yerr=_bar(task.spread),
            fmt=marker,
            markersize=8,
            markeredgecolor="white",
            color=colour,
            elinewidth=1,
            label=way,
        )
    axes.set_xlabel("loss on general text, nats per token (further right: more is forgotten)")
    axes.set_ylabel("loss on the task, nats per token (lower: more is learnt)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _bar(spread: float) -> float | None:
    return None if math.isnan(spread) else spread
