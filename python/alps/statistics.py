"""The statistics: their names, what they mean, and the forms that have them.

CONTRIBUTING.md says what a new statistic needs.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import alps._alps as _alps
from alps.errors import ArgumentError

Form = Literal["qkv", "product"]
"""The weight vector of a head: the rows of its Q, K and V ("qkv"), or the product Qᵀ (K Vᵀ) ("product")."""

STATISTICS = tuple(statistic["name"] for statistic in _alps.STATISTICS)
"""The names of all statistics, in the order in which they are shown. `scan` says how each is defined."""

ON_REQUEST = tuple(statistic["name"] for statistic in _alps.STATISTICS if statistic["on_request"])
"""The statistics that cost more than the one pass, and are computed only when they are named."""

_OF_STORED_ENTRIES = tuple(
    statistic["name"] for statistic in _alps.STATISTICS if statistic["of_stored_entries"]
)

DEFAULT = "relative_delta"
"""The statistic that ranks heads: of those that one pass yields, the one whose heads trained better than random ones.

The measurements are in docs/evidence.md. The paper's score is "wasserstein"."""

NAMES = {
    "wasserstein": "Wasserstein distance",
    "kl": "Kullback-Leibler divergence",
    "js": "Jensen-Shannon divergence",
    "cosine": "cosine distance",
    "euclidean": "Euclidean distance",
    "delta_norm": "norm of the change",
    "relative_delta": "relative change",
    "max_delta": "largest change",
    "changed": "share changed",
    "wasserstein_z": "standardised Wasserstein",
    "sorted_wasserstein": "sorted Wasserstein",
}
"""What people call a statistic."""

UNITS = {
    "wasserstein": "of the vector's length",
    "kl": "nats",
    "js": "nats",
    "changed": "of the entries",
    "wasserstein_z": "standard deviations",
}
"""The unit of a statistic that is neither a bare number nor a weight."""

MEANINGS = {
    "wasserstein": "how far probability travels along the head's vector of weights; the paper's score",
    "kl": "Kullback-Leibler divergence of the tuned distribution from the base's",
    "js": "Jensen-Shannon divergence of the two distributions",
    "cosine": "1 minus the cosine between the two distributions",
    "euclidean": "norm of the difference of the two distributions",
    "delta_norm": "norm of the change of the weights",
    "relative_delta": "norm of the change over the norm of the base's weights",
    "max_delta": "largest change of a weight",
    "changed": "share of the weights whose stored value differs",
    "wasserstein_z": "wasserstein against changes of the same size in random order; near 0: no structure beyond size",
    "sorted_wasserstein": "mean absolute difference of the sorted weights",
}
"""What a statistic measures, in a line."""


def of_form(form: str) -> tuple[str, ...]:
    """The statistics that `form` has.

    Raises:
        ArgumentError: There is no such form.
    """
    if form not in get_args(Form):
        raise ArgumentError(f"there is no form {form!r}; the forms are {', '.join(get_args(Form))}")
    # The entries of a product are not stored, so they have no stored value that could change.
    return tuple(name for name in STATISTICS if form == "qkv" or name not in _OF_STORED_ENTRIES)


def resolve(names: Sequence[str] | None, form: str) -> tuple[str, ...]:
    """The statistics to compute: those named, once each, or all of `form` that one pass yields together.

    Raises:
        ArgumentError: There is no such form, the form has no such statistic, or none is named.
    """
    valid = of_form(form)
    if names is None:
        return tuple(name for name in valid if name not in ON_REQUEST)
    if isinstance(names, str):
        raise ArgumentError(f"statistics is a sequence of names: write [{names!r}]")
    if not names:
        raise ArgumentError(f"no statistic is named; form {form!r} has {', '.join(valid)}")
    for name in names:
        if name not in valid:
            raise ArgumentError(f"form {form!r} has no statistic {name!r}; it has {', '.join(valid)}")
    return tuple(dict.fromkeys(names))
