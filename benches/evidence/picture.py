"""A picture of the differences between chosen and random groups."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from evidence.page import SIGNIFICANT, Material, of_all

SHOWN = (
    "top:agreement",
    "within:relative_delta",
    "top:relative_delta",
    "layers:relative_delta",
    "top:delta_norm",
    "top:euclidean",
    "top:wasserstein",
    "top:product.wasserstein",
    "top:product.relative_delta",
    "top:graft",
    "top:gradient",
    "top:taylor",
    "top:fisher",
    "top:base_norm",
    "values",
)
"""The arms of the picture, from above."""
_COLOURS = {True: "#1b6ca8", False: "#8a8a8a"}


def write_picture(folder: Path, path: Path) -> None:
    """A panel for each task: mean differences with their intervals over the deviation of random sets.

    Args:
        folder: With the results.
        path: Of the picture.
    """
    material = Material.read(folder)
    found = of_all(material, "freeze")
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, (task, (comparisons, corrected)) in zip(
        figure.subplots(1, len(found), sharey=True), found.items(), strict=True
    ):
        random = material.results.found("freeze", task, "random", "test")
        deviation = float(np.mean([np.std(it, ddof=1) for it in random.values()]))
        axes.axvspan(-deviation, deviation, color="#e4e4e4", linewidth=0)
        axes.axvline(0, color="black", linewidth=0.8)
        means = [comparisons[name].mean for name in SHOWN if name in comparisons]
        for place, name in enumerate(SHOWN):
            if name in comparisons:
                it = comparisons[name]
                colour = _COLOURS[corrected.get(name, 1.0) < SIGNIFICANT]
                axes.errorbar(
                    it.mean, place, xerr=it.half_width, fmt="o", color=colour, markersize=5, capsize=2
                )
        reach = 1.2 * max(map(abs, means))
        axes.set(xlim=(-reach, reach), title=task, xlabel="nats per token")
        axes.set_yticks(range(len(SHOWN)), SHOWN)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
