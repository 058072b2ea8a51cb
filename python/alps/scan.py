"""Scans two checkpoints, and reads the geometry of one."""

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

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
from alps.spread import spread
from alps.statistics import Form


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
    executor: Executor | None = None,
    progress: Progress = None,
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

    A checkpoint may lie on this machine, on the Hugging Face hub, or wherever fsspec reads: only headers and the
    weights of Q, K and V are fetched, in large requests, as they are needed, and nothing is stored on the way.

    Quantised weights are compared as the numbers that they stand for, so what quantisation rounded is part of
    the scores; `provenance` then names the quantisation, as "base_quantisation" or "tuned_quantisation".

    Args:
        base: The checkpoint before tuning: a folder or a file; the `owner/name[@revision]` of a model on the Hugging
            Face hub, which is read from the hub's local cache if it is there as a whole; a URL (hf://, https://,
            s3://, gs://, az:// and others of fsspec); a `RemotePath`, or another object with a filesystem `fs` and a
            `path`, such as a UPath; or an adapter of PEFT, for which its base with the changes that it holds is read.
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
        memory: The most bytes of remote files that are held at a time; 512 MiB when not given.
        local_files_only: Whether to ask nothing of the network, as HF_HUB_OFFLINE=1 does for the hub.
        resume: A file in which finished layers are kept, at most a second late, and from which they are taken when the
            same scan is called again. It is written beside the result and stays there.
        executor: Spreads the scan over the workers of any `concurrent.futures.Executor`: processes, Dask's
            `Client.get_executor()`, mpi4py's `MPIPoolExecutor`. Each opens the checkpoints itself, by these names, and
            scans ranges of layers with `threads` threads.
        progress: True for a progress bar, in a terminal or a notebook; or a function, called on this thread now and then
            with the bytes read so far and the bytes to read.

    Returns:
        float64 [layers, heads] for each statistic.

    Raises:
        ArgumentError: An argument is out of its domain.
        CheckpointError: A file is truncated, malformed or of another format, or changed during the scan; `resume` is of
            another scan.
        ModelError: The model is of no known layout, or contradicts its configuration.
        PairError: The checkpoints are not two states of one model.
        WeightsError: A weight is not finite.
        MissingPackageError: A package that reads a remote checkpoint is not installed.
        OSError: A file cannot be read.
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

        alps.scan_part("base", "tuned", 3, 16).save("part3.safetensors")
        scores = alps.merge(Path().glob("part*.safetensors"))

    Args:
        base: The checkpoint before tuning, as for `scan`.
        tuned: The checkpoint after tuning, likewise.
        part: Which part, from 1 on.
        parts: How many there are.
        progress: As for `scan`.
        options: Those of `scan`, without `resume` and `executor`.

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
    """Puts the parts of a scan together. The scores are those of one scan, to the bit.

    Args:
        files: What `Part.save` or `alps scan --part` wrote.

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
    """Reads the geometry of a checkpoint, without its weights.

    Args:
        path: A checkpoint or an adapter, as for `scan`.
        component: Whose heads, as for `scan`.
        local_files_only: Whether to ask nothing of the network.

    Raises:
        ArgumentError: There is no such component.
        CheckpointError: A file is truncated, malformed or of another format.
        ModelError: The model is of no known layout, or contradicts its configuration.
        OSError: A file cannot be read.
    """
    return Geometry.of_layers(**_alps.geometry(sources.find(path, local_files_only).paths, component))
