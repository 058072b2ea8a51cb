"""Scans two checkpoints, and reads the geometry of one."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alps._alps as _alps
from alps import sources
from alps.arguments import Component
from alps.errors import AlpsWarning
from alps.files import check_writable
from alps.geometry import Geometry
from alps.pair import OpenedPair, PairOptions, scores_of
from alps.parts import Part, split
from alps.parts import merge as merge_parts
from alps.progress import Progress, reported
from alps.scores import EQUAL_WEIGHTS, HeadScores
from alps.sources import Name
from alps.statistics import Form

if TYPE_CHECKING:
    from concurrent.futures import Executor


def scan(
    base: Name,
    tuned: Name,
    *,
    component: Component | None = None,
    adapter_base: Name | None = None,
    form: Form = "qkv",
    temperature: float = 1.0,
    statistics: Sequence[str] | None = None,
    threads: int | None = None,
    mmap: bool | None = None,
    memory: int | None = None,
    local_files_only: bool = False,
    resume: str | os.PathLike[str] | None = None,
    executor: "Executor | None" = None,
    progress: Progress = None,
) -> HeadScores:
    """Scores every attention head by how far its weights have moved from `base` to `tuned`.

    A scan reads the weights of Q, K and V in both checkpoints. It runs no model and needs no torch. A checkpoint may
    lie on this machine, on the Hugging Face hub, or wherever fsspec reads; of one that lies elsewhere, only the headers
    and these weights are fetched, in large requests, and nothing is stored on the way.

    Identical weights score exactly 0. If no head has moved, an `AlpsWarning` says so. The scores do not depend on the
    number of threads. Quantised weights are compared as the numbers that they stand for, so the scores include what
    quantisation rounded; `provenance` then names the quantisation, as "base_quantisation" or "tuned_quantisation".

    Examples:
        >>> scores = alps.scan("base", "tuned")
        >>> scores["relative_delta"].shape  # layers, heads
        (4, 8)
        >>> scores.select(ratio=0.1).pairs()  # (layer, head)
        [(0, 5), (1, 2), (1, 3), (3, 6)]

        Only the statistic of the paper, of the product of Q, K and V:

        >>> alps.scan("base", "tuned", form="product", statistics=["wasserstein"])
        HeadScores(llama, 4 layers x 8 heads, 4 key/value groups: wasserstein)

    Args:
        base: The checkpoint before tuning: a folder or a file; the `owner/name[@revision]` of a model on the Hugging
            Face hub, which is read from the hub's local cache if it is there as a whole; a URL (hf://, https://,
            s3://, gs://, az:// and others of fsspec); a `RemotePath`, or another object with a filesystem `fs` and a
            `path`, such as a UPath; or an adapter of PEFT, which is read as its base with the changes that it holds.
        tuned: The checkpoint after tuning, named in the same ways.
        component: The attention whose heads are scored: the self-attention of the text "decoder", of the "encoder",
            of the "vision" or "audio" tower, or the "cross" attention of the decoder to the encoder. When not given,
            the first of these that the model has, in this order.
        adapter_base: The checkpoint that the adapters among the two change. When not given, a tuned adapter
            changes `base`; any other adapter changes the checkpoint that its configuration names; weights in the
            adapter's own folder come before both. The scores' provenance names the checkpoint.
        form: The weight vector of a head: "qkv" or "product", as defined below.
        temperature: The temperature τ of the softmax, above 0.
        statistics: The names of the statistics to return, of those below. When not given, every one but
            "sorted_wasserstein".
        threads: The number of threads; as many as the machine has cores when not given.
        mmap: Whether files in the page cache may be mapped into memory, which is faster than copying them and
            changes no score. While files are mapped, a process-wide handler of SIGBUS is installed, since that
            signal would end the process when another program shortens a mapped file. When not given, the
            environment variable ALPS_MMAP decides (1 or 0), else files may be mapped.
        memory: The most bytes of remote files that are held at a time; 512 MiB when not given.
        local_files_only: Whether to ask nothing of the network, as HF_HUB_OFFLINE=1 does for the hub.
        resume: A file that keeps the finished layers, at most a second late. The same call with the same file goes on
            from them. The file is written beside the result and stays there.
        executor: Any `concurrent.futures.Executor` over whose workers the scan is spread: processes, Dask's
            `Client.get_executor()`, mpi4py's `MPIPoolExecutor`. Each worker opens the checkpoints itself, by these
            names, and scans ranges of layers with `threads` threads.
        progress: True for a progress bar, in a terminal or a notebook; or a function, called on this thread now and then
            with the bytes read so far and the bytes to read.

    Returns:
        The scores: float64 [layers, heads] for each statistic.

    Raises:
        ArgumentError: An argument is out of its domain.
        CheckpointError: A file is truncated, malformed or of another format, or changed during the scan; `resume` is of
            another scan.
        ModelError: The model is of no known layout, or contradicts its configuration.
        PairError: The checkpoints are not two states of one model.
        WeightsError: A weight is not finite.
        MissingPackageError: A package that reads a remote checkpoint is not installed.
        OSError: A file cannot be read.

    Definitions:
        θ is the vector of the N weights of a head. With form "qkv" it is the rows of Q of the head, then the rows of K
        and of V of its key/value group. With form "product" it is Qᵀ (K Vᵀ), row by row: equation 5 of the paper.
        P = softmax(θ / τ) is a distribution over these entries, and C is its running sum. B marks the base, T the tuned
        model.

        - `wasserstein`, the score of the paper: Σᵢ |C_T(i) − C_B(i)| / (N − 1)
        - `kl`, in nats: Σᵢ P_T(i) · log(P_T(i) / P_B(i))
        - `js`, in nats: ½ Σᵢ P_T(i) · log(P_T(i) / M(i)) + ½ Σᵢ P_B(i) · log(P_B(i) / M(i)), where M = (P_T + P_B) / 2
        - `cosine`: 1 − cos(P_T, P_B)
        - `euclidean`: ‖P_T − P_B‖
        - `delta_norm`: ‖θ_T − θ_B‖
        - `relative_delta`, which ranks heads by default: ‖θ_T − θ_B‖ / ‖θ_B‖
        - `max_delta`: maxᵢ |θ_T(i) − θ_B(i)|
        - `changed`, of form "qkv" only: the share of the entries whose stored value differs
        - `wasserstein_z`: (`wasserstein` / `euclidean` − √(π/32)) / √(7/60 − π/32). It is near 0 when the changes lie in
          no order, and not a number for identical weights
        - `sorted_wasserstein`, computed only when named: Σᵢ |θ_T[i] − θ_B[i]| / N, where θ[i] is the i-th smallest entry

    References:
        ALPS, arXiv 2505.18799: <https://arxiv.org/abs/2505.18799>
    """
    options = PairOptions(
        base,
        tuned,
        component=component,
        adapter_base=adapter_base,
        form=form,
        temperature=temperature,
        statistics=statistics,
        threads=threads,
        mmap=mmap,
        memory=memory,
        local_files_only=local_files_only,
    )
    opened = OpenedPair.open(options)
    part = opened.new_part()
    if resume is not None:
        check_writable(resume)
        if Path(resume).exists():
            part = opened.unfinished(resume)
    with reported(progress, "reading", "bytes") as report:
        if executor is not None:
            from alps.spread import spread

            spread(opened, part, executor, report, resume)
        else:
            opened.finish(part, report, resume)
    scores = scores_of(part)
    if scores.all_equal():
        warnings.warn(EQUAL_WEIGHTS, AlpsWarning, stacklevel=2)
    return scores


def scan_part(
    base: Name,
    tuned: Name,
    part: int,
    parts: int,
    *,
    progress: Progress = None,
    **options: Any,
) -> Part:
    """Scans one of several parts of the layers, for machines that share nothing but the checkpoints.

    Each machine scans and saves its part. `merge` puts the files together.

    Examples:
        >>> for part in (1, 2):
        ...     alps.scan_part("base", "tuned", part, 2).save(f"part{part}.safetensors")
        >>> scores = alps.merge(["part1.safetensors", "part2.safetensors"])
        >>> scores == alps.scan("base", "tuned")
        True

    Args:
        base: The checkpoint before tuning, as for `scan`.
        tuned: The checkpoint after tuning, as for `scan`.
        part: The number of the part to scan, from 1 on.
        parts: The number of parts.
        progress: A function that is called with the bytes read so far and the bytes to read, as for `scan`.
        options: Other arguments of `scan`, except `resume` and `executor`.

    Returns:
        The scores of the layers of this part.

    Raises:
        ArgumentError: There is no such part.
        AlpsError: As for `scan`.
        OSError: A file cannot be read.
    """
    split(0, part, parts)
    opened = OpenedPair.open(PairOptions(base, tuned, **options))
    found = opened.new_part()
    with reported(progress, "reading", "bytes") as report:
        opened.finish(found, report, layers=split(len(opened.geometry.layers), part, parts))
    return found


def merge(files: Iterable[str | os.PathLike[str]]) -> HeadScores:
    """Puts the parts of a scan together; the scores are those of one scan, to the bit.

    Examples:
        >>> from pathlib import Path
        >>> for part in (1, 2):
        ...     alps.scan_part("base", "tuned", part, 2).save(f"part{part}.safetensors")
        >>> alps.merge(Path().glob("part*.safetensors")).top(1)  # (layer, head, score)
        [(0, 5, 0.344...)]

    Args:
        files: The files that `Part.save` or `alps scan --part` wrote, in any order.

    Returns:
        The scores of all layers.

    Raises:
        ArgumentError: Parts are of different scans; a layer is in two of them, or in none.
        CheckpointError: A file is no part.
        OSError: A file cannot be read.
    """
    scores = scores_of(merge_parts((os.fspath(file), Part.load(file)) for file in files))
    if scores.all_equal():
        warnings.warn(EQUAL_WEIGHTS, AlpsWarning, stacklevel=2)
    return scores


def geometry(path: Name, *, component: Component | None = None, local_files_only: bool = False) -> Geometry:
    """Reads the sizes of a checkpoint's attention, without its weights.

    Examples:
        >>> geometry = alps.geometry("base")
        >>> print(geometry)
        llama, 4 layers x 8 heads, 4 key/value groups
        >>> geometry.group_of(head=5)
        2

    Args:
        path: A checkpoint or an adapter, as for `scan`.
        component: The attention whose sizes are read, as for `scan`.
        local_files_only: Whether to ask nothing of the network.

    Returns:
        The number and the sizes of the heads in each layer.

    Raises:
        ArgumentError: There is no such component.
        CheckpointError: A file is truncated, malformed or of another format.
        ModelError: The model is of no known layout, or contradicts its configuration.
        OSError: A file cannot be read.
    """
    return Geometry.of_layers(**_alps.geometry(sources.find(path, local_files_only).paths, component))
