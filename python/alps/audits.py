"""What an audit found: how much of a tuning the chosen heads carry, beside random sets of the same size."""

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alps.files import finite, write_whole
from alps.heads import HeadSet
from alps.optional import visual

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trial:
    """Says how much of a tuning a head set carries, beside random sets of the same size.

    An `Audit` has two trials: "sufficiency" puts the tuned rows of a set into the base, "necessity" puts the base's rows
    of a set into the tuned model. `audit` defines the shares.

    Examples:
        >>> import numpy as np
        >>> shares = np.array([0.1, 0.2, 0.3])
        >>> trial = alps.Trial("sufficiency", chosen=0.8, random=shares, matched=shares)
        >>> trial.rank, trial.p_value
        (1, 0.25)

    Attributes:
        name: "sufficiency" or "necessity".
        chosen: The share of the tuning that the chosen heads carry: 1 is all of it, 0 none.
        random: The shares of random sets of the same size.
        matched: The shares of random sets with as many heads in each layer.
    """

    name: str
    chosen: float
    random: NDArray[np.float64]
    matched: NDArray[np.float64]

    @property
    def rank(self) -> int:
        """The rank of the chosen set among all sets, itself included; 1 for the largest share."""
        return 1 + int((self.random >= self.chosen).sum())

    @property
    def p_value(self) -> float:
        """How likely a random set would have carried as much: (1 + k) / (1 + n), where k of the n random sets do."""
        return self.rank / (1 + len(self.random))

    @property
    def p_within_layers(self) -> float:
        """The same among the sets with as many heads in each layer: small if the choice found heads and not only layers."""
        return (1 + int((self.matched >= self.chosen).sum())) / (1 + len(self.matched))

    def __str__(self) -> str:
        middle = np.median(self.random)
        return (
            f"{self.name}: {100 * self.chosen:.1f} % of the tuning, random sets {100 * middle:.1f} %; rank "
            f"{self.rank} of {1 + len(self.random)}, p = {self.p_value:.3g}; within the same layers p = "
            f"{self.p_within_layers:.3g}"
        )


@dataclass(frozen=True)
class Audit:
    """Says how much of a tuning the chosen heads carry, as `audit` returns it.

    Examples:
        >>> import torch
        >>> heads = alps.HeadSet.load("heads.json")
        >>> ids = torch.arange(16)[None]  # the tokens of a text
        >>> batch = {"input_ids": ids, "labels": ids}
        >>> found = alps.audit("base", "tuned", heads, [batch], draws=3)
        >>> found.sufficiency.rank <= 1 + 3
        True
        >>> found.save("audit.json")
        >>> found.plot().savefig("audit.svg")

    Attributes:
        heads: The chosen heads.
        base_loss: The loss of the base.
        tuned_loss: The loss of the tuned model.
        all_heads: The share of the tuning that the rows of all heads carry together.
        sufficiency: The trial that puts the tuned rows of the chosen heads into the base.
        necessity: The trial that puts the base's rows of the chosen heads into the tuned model.
        seed: The seed of the random sets.
    """

    heads: HeadSet
    base_loss: float
    tuned_loss: float
    all_heads: float
    sufficiency: Trial
    necessity: Trial
    seed: int

    def __str__(self) -> str:
        return "\n".join(
            (
                self.heads.report.summary,
                f"loss: base {self.base_loss:.4g}, tuned {self.tuned_loss:.4g}; the Q/K/V rows of all heads carry "
                f"{100 * self.all_heads:.1f} % of the difference",
                str(self.sufficiency),
                str(self.necessity),
            )
        )

    def to_json(self) -> str:
        """Returns a JSON document with every number, null where one is not finite, and the heads."""

        def trial(it: Trial) -> dict[str, Any]:
            return {
                "chosen": it.chosen,
                "random": it.random.tolist(),
                "matched": it.matched.tolist(),
                "rank": it.rank,
                "p_value": it.p_value,
                "p_within_layers": it.p_within_layers,
            }

        document = {
            "format": "alps-audit",
            "version": 1,
            "base_loss": self.base_loss,
            "tuned_loss": self.tuned_loss,
            "all_heads": self.all_heads,
            "sufficiency": trial(self.sufficiency),
            "necessity": trial(self.necessity),
            "seed": self.seed,
            "heads": json.loads(self.heads.to_json()),
        }
        return json.dumps(finite(document), indent=2, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to a file, whole or not at all.

        Args:
            path: The file to write; an older one is replaced.

        Raises:
            OSError: The file cannot be written.
        """
        write_whole(path, self.to_json().encode())

    def _repr_html_(self) -> str:
        html: str = visual("notebook", "a notebook").audit_html(self)
        return html

    def plot(self) -> "Figure":
        """Draws the share of the chosen heads among those of the random sets, for both trials.

        Returns:
            A figure of matplotlib, which pyplot does not know of.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        figure: Figure = visual("audit_figure", "a picture").audit_figure(self)
        return figure
