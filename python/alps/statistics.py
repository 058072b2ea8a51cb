"""The names of the statistics, and the forms that have them."""

from collections.abc import Sequence

from alps.errors import ArgumentError

FORMS = ("qkv", "product")

ONE_PASS = (
    "wasserstein",
    "kl",
    "js",
    "cosine",
    "euclidean",
    "delta_norm",
    "relative_delta",
    "max_delta",
    "changed",
    "wasserstein_z",
)
"""The statistics that one pass over the weights yields together."""

SORTED = "sorted_wasserstein"
"""The statistic that needs a sort, and is computed only when it is named."""

DEFAULT = "wasserstein"
"""The statistic that ranks heads: the PAD score of the paper."""


def one_pass(form: str) -> tuple[str, ...]:
    """The statistics that one pass yields for `form`.

    Raises:
        ArgumentError: There is no such form.
    """
    if form not in FORMS:
        raise ArgumentError(f"there is no form {form!r}; the forms are {', '.join(FORMS)}")
    # The entries of a product are not stored, so none of them can be said to have changed.
    return tuple(name for name in ONE_PASS if (form, name) != ("product", "changed"))


def resolve(names: Sequence[str] | None, form: str) -> tuple[str, ...]:
    """The statistics to compute: those named, once each, or every one-pass statistic of `form`.

    Raises:
        ArgumentError: There is no such form, the form has no such statistic, or none is named.
    """
    default = one_pass(form)
    if names is None:
        return default
    valid = (*default, SORTED)
    if isinstance(names, str):
        raise ArgumentError(f"statistics is a sequence of names: write [{names!r}]")
    if not names:
        raise ArgumentError(f"no statistic is named; form {form!r} has {', '.join(valid)}")
    for name in names:
        if name not in valid:
            raise ArgumentError(f"form {form!r} has no statistic {name!r}; it has {', '.join(valid)}")
    return tuple(dict.fromkeys(names))
