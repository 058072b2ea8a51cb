"""What pictures, reports and notebooks say of scores and head sets, in words."""

from collections.abc import Mapping

from alps.geometry import Geometry
from alps.heads import HeadSet

UNITS = {
    "wasserstein": "of the vector's length",
    "kl": "nats",
    "js": "nats",
    "changed": "of the entries",
    "wasserstein_z": "standard deviations",
}
"""What a statistic is measured in, where that is more than a bare number or a weight."""

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
"""What a statistic says, in a line."""

_ELLIPSIS = "…"


def printable(text: str) -> str:
    """`text` on one line, without characters that have no shape."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def elided(text: str, longest: int) -> str:
    """`text` of at most `longest` characters; of a longer one the end stays, since paths end in what tells them apart."""
    text = printable(text)
    return text if len(text) <= longest else _ELLIPSIS + text[-(longest - 1) :]


def joined(*parts: str) -> str:
    """The parts that say something, in one sentence."""
    return "; ".join(part for part in parts if part)


def pair(provenance: Mapping[str, str], longest: int = 60) -> str:
    """The two checkpoints, or nothing when the scores do not say which they were."""
    if not {"base", "tuned"} <= provenance.keys():
        return ""
    return f"{elided(provenance['base'], longest)} → {elided(provenance['tuned'], longest)}"


def method(provenance: Mapping[str, str]) -> str:
    """The form and the temperature, as far as they are known."""
    known = ((name, provenance[name]) for name in ("form", "temperature") if name in provenance)
    return ", ".join(f"{name} {elided(value.removesuffix('.0'), 20)}" for name, value in known)


def choice(provenance: Mapping[str, str]) -> str:
    """How heads were chosen, as far as it is known."""
    names = ("rule", "statistic", "ratio", "budget", "seed")
    return ", ".join(f"{name} {elided(provenance[name], 30)}" for name in names if name in provenance)


def size(geometry: Geometry) -> str:
    """The model type and its number of layers, heads and key/value groups."""
    layers, heads = geometry.shape
    groups = geometry.key_value_heads
    return f"{elided(geometry.model_type, 30)}: {layers} layers × {heads} heads, {groups} key/value groups"


def amount(heads: HeadSet) -> str:
    """How many heads and what share of the parameters a head set has."""
    report = heads.report
    return (
        f"{report.heads:,} of {report.total_heads:,} heads, {report.key_value_groups:,} of "
        f"{report.total_key_value_groups:,} key/value groups, {100 * report.share:.1f} % of the Q/K/V parameters"
    )
