"""Scans two checkpoints, and reads the geometry of one."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import alps._alps as _alps
from alps import sources
from alps import statistics as statistics_table
from alps.errors import AlpsWarning, ArgumentError
from alps.geometry import Geometry
from alps.scores import EQUAL_WEIGHTS, HEADS_MOVED, ZERO_IF_UNMOVED, HeadScores

Form = statistics_table.Form
Component = Literal["decoder", "encoder", "cross", "vision", "audio"]


def scan(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    *,
    component: Component | None = None,
    adapter_base: str | os.PathLike[str] | None = None,
    form: Form = "qkv",
    temperature: float = 1.0,
    statistics: Sequence[str] | None = None,
    threads: int | None = None,
    mmap: bool | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> HeadScores:
    """Scores every attention head by how far its weights have moved from `base` to `tuned`.

    theta is the flat vector of a head's weights. With form "qkv" it is the rows of Q, then K, then V of
    the head and its key/value group; with "product" it is Q^T (K V^T), equation 5 of the paper
    (https://arxiv.org/abs/2505.18799). P = softmax(theta / temperature), B is base, T is tuned, N is the
    number of entries, C is the running sum of P. The statistics:

    - "wasserstein" (the paper's score): 1/(N-1) * sum over i < N-1 of abs(C_T(i) - C_B(i));
    - "kl": sum P_T log(P_T / P_B); "js": the Jensen-Shannon divergence; both in nats;
    - "cosine": 1 - cos(P_B, P_T); "euclidean": the norm of P_T - P_B;
    - "delta_norm": the norm of theta_T - theta_B; "relative_delta", which ranks heads by default: that over the
      norm of theta_B; "max_delta": its largest absolute entry;
    - "changed" (form "qkv" only): the share of entries whose stored value differs;
    - "wasserstein_z": (wasserstein / euclidean - sqrt(pi/32)) / sqrt(7/60 - pi/32), near 0 when the changes
      lie in no order; not-a-number for identical weights;
    - "sorted_wasserstein" (needs a sort, so only when named): the mean absolute difference of the sorted
      entries of the two thetas.

    Identical weights score exactly 0; if those of all heads are, an AlpsWarning says so. Results do not depend on the
    number of threads.

    Quantised weights are compared as the numbers that they stand for, so what quantisation rounded is part of
    the scores; `provenance` then names the quantisation, as "base_quantisation" or "tuned_quantisation".

    Args:
        base: The checkpoint before tuning: a folder, a file, or the `owner/name[@revision]` of a model
            that is in the local cache of the Hugging Face hub; or an adapter of PEFT, for which its base
            with the changes that it holds is read.
        tuned: The checkpoint after tuning, likewise.
        component: Whose heads: those of the self-attention of the text "decoder", of the "encoder", of the
            "vision" or "audio" tower, or of the "cross" attention of the decoder to the encoder. When not
            given, those of the first of these that the model has, in this order.
        adapter_base: The checkpoint that the adapters among the two change. When not given, a tuned adapter
            changes `base`; any other adapter changes the checkpoint that its configuration names; weights in the
            adapter's own folder come before both. The scores' provenance names the checkpoint.
        form: What a head's weight vector is: "qkv" or "product".
        temperature: Of the softmax.
        statistics: The statistics to return; every one but "sorted_wasserstein" when not given.
        threads: How many to use; as many as the machine has cores when not given.
        mmap: Whether files in the page cache may be mapped into memory, which is faster than copying them and
            changes no score. While files are mapped, a process-wide handler of SIGBUS is installed, since that
            signal would end the process when another program shortens a mapped file. When not given, the
            environment variable ALPS_MMAP decides (1 or 0), else files may be mapped.
        progress: Called on this thread now and then with the bytes read so far and the bytes to read.

    Returns:
        float64 [layers, heads] for each statistic.

    Raises:
        ArgumentError: An argument is out of its domain.
        CheckpointError: A file is truncated, malformed or of another format.
        ModelError: The model is of no known layout, or contradicts its configuration.
        PairError: The checkpoints are not two states of one model.
        WeightsError: A weight is not finite.
        OSError: A file cannot be read.
    """
    names = statistics_table.resolve(statistics, form)
    if threads is not None and threads < 1:
        raise ArgumentError(f"threads must be 1 or more, found {threads}")
    may_map = _may_map(mmap)
    base_source, tuned_source = sources.find_both(base, tuned, adapter_base)
    result = _alps.scan(
        base_source.paths,
        tuned_source.paths,
        form,
        temperature,
        any(name in statistics_table.ON_REQUEST for name in names),
        threads,
        may_map,
        progress,
        component,
    )
    provenance = {
        **base_source.provenance("base"),
        **_provenance("base", result["base"]),
        **tuned_source.provenance("tuned"),
        **_provenance("tuned", result["tuned"]),
        "form": form,
        "temperature": repr(float(temperature)),
        "alps": _alps.__version__,
    }
    found = Geometry.of_layers(**result["geometry"])
    change = next(result["statistics"][name] for name in ZERO_IF_UNMOVED if name in result["statistics"])
    if (moved := int((change > 0).sum())) < found.heads:
        provenance[HEADS_MOVED] = str(moved)
    if not moved:
        warnings.warn(EQUAL_WEIGHTS, AlpsWarning, stacklevel=2)
    return HeadScores({name: result["statistics"][name] for name in names}, found, provenance)


def _may_map(mmap: bool | None) -> bool:
    """Whether files may be mapped: by the argument, else by the environment variable, else yes."""
    if mmap is not None:
        return mmap
    value = os.environ.get("ALPS_MMAP", "1")
    if value not in ("0", "1"):
        raise ArgumentError(f"the environment variable ALPS_MMAP must be 0 or 1, found {value!r}")
    return value == "1"


def _provenance(which: str, files: "_alps._SourceFiles") -> dict[str, str]:
    return {f"{which}_{name}": str(value) for name, value in files.items() if value is not None}


def geometry(path: str | os.PathLike[str], *, component: Component | None = None) -> Geometry:
    """Reads the geometry of a checkpoint, without its weights.

    Args:
        path: A folder, a file, an adapter, or the `owner/name[@revision]` of one in the hub's local cache.
        component: Whose heads, as for `scan`.

    Raises:
        ArgumentError: There is no such component.
        CheckpointError: A file is truncated, malformed or of another format.
        ModelError: The model is of no known layout, or contradicts its configuration.
        OSError: A file cannot be read.
    """
    return Geometry.of_layers(**_alps.geometry(sources.find(path).paths, component))
