"""Puts the rows of chosen heads of one checkpoint into another."""

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import alps._alps as _alps
from alps import sources
from alps.errors import ArgumentError
from alps.files import sync_folder
from alps.geometry import Geometry
from alps.heads import HeadSet, check_head_set
from alps.progress import Progress, reported
from alps.sources import Name, Source
from alps.temporary import temporary_folder

Donor: TypeAlias = tuple[Name, HeadSet] | tuple[Name, HeadSet, float]
"""A tuned checkpoint or adapter, its heads, and the scale of their change (1 when not given)."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".pkl")
"""The suffixes of weights. Files with them are not copied: the graft has weights of its own."""


@dataclass(frozen=True)
class Graft:
    """A checkpoint that `graft` has written.

    Examples:
        >>> heads = alps.HeadSet.load("heads.json")
        >>> written = alps.graft("base", "tuned", heads, "grafted")
        >>> written.path.name, written.bytes, written.files
        ('grafted', 5120, ('config.json',))

    Attributes:
        path: Its folder.
        bytes: The bytes of the rows that were overwritten with those of the chosen heads.
        files: The files that were copied along: configuration, tokenizer and what else was there.
    """

    path: Path
    bytes: int
    files: tuple[str, ...]


def graft(
    base: Name,
    tuned: Name | Sequence[Donor],
    heads: HeadSet | None = None,
    output: str | os.PathLike[str] = "",
    *,
    scale: float = 1.0,
    rest: Literal["base", "tuned"] = "base",
    local_files_only: bool = False,
    progress: Progress = None,
) -> Graft:
    """Writes an ordinary checkpoint: the tuned rows of the chosen heads, everything else as in `base`.

    The rows are those of Q, K and V of the chosen heads and of the key/value groups that they read, with their
    entries of the biases. `alps.restrict` trains the same rows.

    Files, shards, names and number formats are those of `base`; configuration and tokenizer are copied along. A file
    system that can share blocks between files does so for all that is not overwritten. Memory stays small whatever
    the size of the checkpoints. The folder gets its name when all is written; a killed process leaves a folder
    whose name begins with a dot and ends with `.partial`, which the next graft of that name removes.

    Examples:
        >>> maths = alps.scan("base", "tuned").select(ratio=0.1)
        >>> written = alps.graft("base", "tuned", maths, "grafted")
        >>> moved = alps.scan("base", "grafted")["relative_delta"]
        >>> moved.argmax(axis=1)  # the head that differs most, by layer
        array([5, 3, 0, 6])

        The tuned model with the chosen heads as they were before:

        >>> written = alps.graft("base", "tuned", maths, "reverted", rest="tuned")

        The changes of two tunings, each scaled:

        >>> german = alps.scan("base", "german").select(ratio=0.1)
        >>> donors = [("tuned", maths, 0.7), ("german", german, 0.5)]
        >>> written = alps.graft("base", donors, output="both")

    Args:
        base: The checkpoint before tuning, as for `alps.scan`: a path, a name on the hub, a URL. One that is not on this
            machine is fetched as a whole if everything else is taken from it.
        tuned: The checkpoint after tuning, or an adapter of it; or several, each with its heads and its scale (1
            when not given).
        heads: The chosen heads, if `tuned` is one checkpoint.
        output: The folder to write, which must not exist.
        scale: The factor of the change, if `tuned` is one checkpoint.
        rest: The checkpoint that everything else is taken from. With "tuned" the result is the tuned checkpoint, with
            only the chosen heads reverted.
        local_files_only: Whether to ask nothing of the network.
        progress: True for a progress bar, in a terminal or a notebook; or a function, called on this thread now and then
            with the bytes copied so far and the bytes to copy.

    Returns:
        The folder, and what was written into it.

    Raises:
        ArgumentError: An argument is out of its domain, or the heads are those of another model.
        CheckpointError: A file is truncated, malformed or of another format.
        ModelError: The model is of no known layout, or weights are quantised, or rows would have to be written
            into those of an adapter.
        PairError: The checkpoints are not states of one model.
        FileExistsError: `output` exists.
        OSError: A file cannot be read or written.

    Definitions:
        A row w of the base becomes w + Σₖ sₖ · (wₖ − w), where wₖ is the row of the k-th tuned model and sₖ its scale. With
        one model and the scale 1 it is the tuned row, bit for bit. With `rest="tuned"`, a row w₁ of the tuned model
        becomes w₁ + s · (w − w₁).

    References:
        Selective task arithmetic, arXiv 2411.16139: <https://arxiv.org/abs/2411.16139>
    """
    donors = _donors(tuned, heads, scale)
    if rest not in ("base", "tuned"):
        raise ArgumentError(f'rest: expected "base" or "tuned", found {rest!r}')
    if rest == "tuned" and len(donors) != 1:
        raise ArgumentError(f'rest="tuned" needs one tuned checkpoint, found {len(donors)}')
    target = _check_target(output)
    found = [sources.find_both(base, path, None, local_files_only) for path, _, _ in donors]
    host, others = found[0][0], [other for _, other in found]
    if rest == "tuned":
        host, others = others[0], [host]
    component = donors[0][1].geometry.component
    geometry = Geometry.of_layers(**_alps.geometry(host.paths, component))
    for _, chosen, _ in donors:
        if difference := chosen.geometry.difference(geometry):
            raise ArgumentError(f"the heads are not those of {host.name} (heads and model): {difference}")
    with temporary_folder(target) as temporary:
        with reported(progress, "copying", "bytes") as report:
            written = _alps.graft(
                host.paths,
                [
                    (other.paths, chosen.mask, chosen.key_value_groups, factor)
                    for other, (_, chosen, factor) in zip(others, donors, strict=True)
                ],
                component,
                os.fspath(temporary),
                report,
            )
        files = _copy_along(host, temporary)
        sync_folder(temporary)
        temporary.rename(target)
        sync_folder(target.parent)
    return Graft(target, written, files)


def _donors(
    tuned: Name | Sequence[Donor], heads: HeadSet | None, scale: float
) -> list[tuple[Name, HeadSet, float]]:
    donors: list[tuple[Name, HeadSet, float]]
    if not isinstance(tuned, Sequence) or isinstance(tuned, str):
        donors = [(tuned, check_head_set(heads), scale)]
    else:
        if heads is not None:
            raise ArgumentError("heads: with several tuned checkpoints, each has its heads beside it")
        donors = []
        for donor in tuned:
            if not isinstance(donor, tuple) or len(donor) not in (2, 3) or not isinstance(donor[1], HeadSet):
                raise ArgumentError(f"tuned: expected (checkpoint, heads, scale), found {donor!r}")
            donors.append((donor[0], donor[1], donor[2] if len(donor) == 3 else 1.0))
        if not donors:
            raise ArgumentError("tuned: expected at least one checkpoint, found none")
    first = donors[0][1].geometry
    for _, chosen, factor in donors:
        if not chosen:
            raise ArgumentError("heads: expected at least one head, found none")
        if not math.isfinite(factor):
            raise ArgumentError(f"scale: expected a finite number, found {factor!r}")
        if difference := chosen.geometry.difference(first):
            raise ArgumentError(f"the head sets are of different models: {difference}")
    return donors


def _check_target(output: str | os.PathLike[str]) -> Path:
    if not os.fspath(output):
        raise ArgumentError("output: expected the folder to write, found none")
    target = Path.cwd() / output
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "expected a name that is free", os.fspath(output))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    return target


def _copy_along(host: Source, into: Path) -> tuple[str, ...]:
    """Copies what is beside the weights: files of other kinds, and none of a folder within."""
    beside, copied = sources.Folder(*host.location), []
    for name in beside.names():
        is_weights = name.endswith(_WEIGHTS) or name.startswith(".") or name == "README.md"
        if is_weights or (into / name).exists():
            continue
        if beside.copy(name, into / name):
            copied.append(name)
    return tuple(copied)
