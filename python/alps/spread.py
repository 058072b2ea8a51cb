"""Spreads a scan over the workers of an executor.

The main process opens both checkpoints to know their layers, and sends names, options and places of layers; small arrays
come back. A head is never split, so the scores are those of one machine, to the bit.
"""

import os
import socket
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass

from alps.errors import AlpsError, CheckpointError, WorkerError
from alps.pair import OpenedPair, PairOptions
from alps.parts import KeptPart, Part, differences

_PARTS_PER_WORKER = 4
_WORKERS = 8
"""The number of workers that is taken for an executor that does not say how many it has."""
_ATTEMPTS = 3


@dataclass
class _Result:
    """What a worker found."""

    part: Part
    host: str


def spread(
    opened: OpenedPair,
    part: Part,
    executor: Executor,
    progress: Callable[[int, int], object] | None,
    resume: str | os.PathLike[str] | None,
) -> None:
    """Scans the layers that a part lacks by the workers of an executor, and adds them to it.

    A range of layers whose worker is lost, or fails otherwise than by what the files hold, is sent again, twice.

    Raises:
        AlpsError: As `alps.scan`; CheckpointError if a worker finds other files under these names.
        WorkerError: A range of layers failed three times; names the layers, and the machine if it is known.
    """
    missing = [place for place in range(len(opened.geometry.layers)) if place not in part.rows]
    workers = getattr(executor, "_max_workers", None) or _WORKERS
    size = max(1, len(missing) // (_PARTS_PER_WORKER * workers))
    ranges = [tuple(missing[start : start + size]) for start in range(0, len(missing), size)]
    waiting: dict[Future[_Result], tuple[int, ...]] = {}
    attempts: dict[tuple[int, ...], int] = {}

    def submit(layers: tuple[int, ...]) -> None:
        attempts[layers] = attempts.get(layers, 0) + 1
        try:
            future = executor.submit(_scan_layers, opened.options, list(layers))
        except RuntimeError as error:  # the executor is broken, or was shut down
            raise WorkerError(_failure(opened, layers, attempts[layers], error)) from error
        waiting[future] = layers

    total = sum(opened.layer_bytes)
    kept = KeptPart(part, resume)
    try:
        for layers in ranges:
            submit(layers)
        while waiting:
            for future in wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).done:
                layers = waiting.pop(future)
                try:
                    result = future.result()
                except AlpsError:
                    raise
                except Exception as error:
                    if attempts[layers] >= _ATTEMPTS:
                        raise WorkerError(_failure(opened, layers, _ATTEMPTS, error)) from error
                    submit(layers)
                    continue
                _add(opened, part, result)
            if progress is not None:
                progress(sum(opened.layer_bytes[place] for place in part.rows), total)
            kept.update()
    finally:
        for future in waiting:
            future.cancel()
        kept.save()
    if not part.provenance:
        opened.finish(part)  # reads nothing: no layer is missing


def _scan_layers(options: PairOptions, layers: list[int]) -> _Result:
    """Scans some layers; runs in a worker."""
    host = socket.gethostname()
    try:
        opened = OpenedPair.open(options)
        part = opened.new_part()
        opened.finish(part, layers=layers)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (on {host})", error.filename) from None
    return _Result(part, host)


def _add(opened: OpenedPair, part: Part, result: _Result) -> None:
    if difference := differences(opened.identity, result.part.identity):
        raise CheckpointError(
            f"the worker on {result.host} found other files under these names (here and there: {difference}); expected "
            "the same files on every machine"
        )
    part.rows.update(result.part.rows)
    part.provenance = part.provenance or result.part.provenance


def _failure(opened: OpenedPair, layers: tuple[int, ...], attempts: int, error: BaseException) -> str:
    first, last = (opened.geometry.layers[place] for place in (layers[0], layers[-1]))
    return f"layers {first} to {last} failed at attempt {attempts}: {type(error).__name__}: {error}"
