"""Two checkpoints, opened to be compared: what a scan of them is of, and the scan of some of their layers."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import alps._alps as _alps
from alps import limits, sources
from alps import statistics as statistics_table
from alps.arguments import Component
from alps.errors import ArgumentError, CheckpointError
from alps.geometry import Geometry
from alps.parts import KeptPart, Part, differences
from alps.scores import HEADS_MOVED, ZERO_IF_UNMOVED, HeadScores
from alps.sources import Name, Source
from alps.statistics import Form


@dataclass(frozen=True)
class PairOptions:
    """The arguments of `alps.scan` that a worker on another machine needs as well, checked when they are put together.

    Raises:
        ArgumentError: An argument is out of its domain.
    """

    base: Name
    tuned: Name
    component: Component | None = None
    adapter_base: Name | None = None
    form: Form = "qkv"
    temperature: float = 1.0
    statistics: Sequence[str] | None = None
    threads: int | None = None
    mmap: bool | None = None
    memory: int | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        statistics = statistics_table.resolve(self.statistics, self.form)
        if self.threads is not None and self.threads < 1:
            raise ArgumentError(f"threads must be 1 or more, found {_shown(self.threads)}")
        if self.threads is not None and self.threads > limits.MOST_THREADS:
            raise ArgumentError(f"threads is {_shown(self.threads)}; expected 1 to {limits.MOST_THREADS}")
        if self.memory is not None and self.memory < 1:
            raise ArgumentError(f"memory must be 1 byte or more, found {self.memory}")
        _alps.check_options(self.form, self.temperature, self.threads)
        # What the environment of this process decides holds for every worker.
        resolved = {"statistics": statistics, "temperature": float(self.temperature), "mmap": self.may_map()}
        for name, value in resolved.items():
            object.__setattr__(self, name, value)

    def named_statistics(self) -> tuple[str, ...]:
        """The statistics to return: those named, or all that one pass yields."""
        return tuple(self.statistics or ())

    def may_map(self) -> bool:
        """Whether files may be mapped: by the argument, else by the environment variable, else yes."""
        if self.mmap is not None:
            return self.mmap
        value = os.environ.get("ALPS_MMAP", "1")
        if value not in ("0", "1"):
            raise ArgumentError(f"the environment variable ALPS_MMAP must be 0 or 1, found {value!r}")
        return value == "1"


def _shown(number: int) -> str:
    return str(number) if abs(number) < 10**18 else "a number of more than 18 digits"


class OpenedPair:
    """Two checkpoints, opened.

    Attributes:
        options: How they are compared.
        geometry: Their heads.
        identity: What a scan of them is of, as in `Part`.
        layer_bytes: The bytes that a scan reads of each layer.
    """

    def __init__(self, options: PairOptions, pair: _alps.Pair, base: Source, tuned: Source):
        self.options = options
        self.geometry = Geometry.of_layers(**pair.geometry())
        self.layer_bytes = pair.layer_bytes()
        self._pair, self._base, self._tuned = pair, base, tuned
        base_files, tuned_files = ([list(file) for file in files] for files in pair.files())
        self.identity: dict[str, Any] = {
            "alps": _alps.__version__,
            "component": self.geometry.component,
            "form": options.form,
            "temperature": options.temperature,
            "statistics": list(options.named_statistics()),
            "geometry": self.geometry.to_fields(),
            "base_files": base_files,
            "tuned_files": tuned_files,
            "base_configuration": sources.configuration_digests(base),
            "tuned_configuration": sources.configuration_digests(tuned),
        }
        # Where nothing tells two states of a file apart, the names have to.
        for role, source, files in (("base", base, base_files), ("tuned", tuned, tuned_files)):
            if not all(_tells_states_apart(str(version)) for _, _, version in files):
                self.identity[f"{role}_name"] = source.name

    @classmethod
    def open(cls, options: PairOptions) -> "OpenedPair":
        """Finds and opens the checkpoints; raises what `alps.scan` does."""
        base, tuned = sources.find_both(
            options.base, options.tuned, options.adapter_base, options.local_files_only
        )
        return cls(options, _alps.Pair(base.paths, tuned.paths, options.component), base, tuned)

    def new_part(self) -> Part:
        """A part without layers."""
        return Part(self.geometry, self.identity, {})

    def unfinished(self, path: str | os.PathLike[str]) -> Part:
        """The part that an earlier scan of the same pair has left.

        Raises:
            CheckpointError: It is one of another scan.
            OSError: The file cannot be read.
        """
        part = Part.load(path)
        if difference := differences(part.identity, self.identity):
            raise CheckpointError(
                f"{os.fspath(path)}: expected layers of this scan, found those of another one (the file and the scan: "
                f"{difference}); delete the file or name another one"
            )
        return part

    def finish(
        self,
        part: Part,
        progress: Callable[[int, int], object] | None = None,
        resume: str | os.PathLike[str] | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        """Scans the layers that a part lacks, all or those at these places, and adds them to it.

        The part is saved as `resume` now and then, and however the scan ends.
        """
        wanted = range(len(self.geometry.layers)) if layers is None else layers
        missing = [place for place in wanted if place not in part.rows]
        before = sum(self.layer_bytes[place] for place in part.rows)
        kept = KeptPart(part, resume)

        def finished(place: int, values: dict[str, NDArray[np.float64]]) -> None:
            part.rows[place] = values
            kept.update()

        def report(done: int, total: int) -> None:
            if progress is not None and total:
                progress(before + done, before + total)

        options = self.options
        found = None
        try:
            found = self._pair.scan(
                options.form,
                options.temperature,
                any(name in statistics_table.ON_REQUEST for name in options.named_statistics()),
                options.threads,
                options.may_map(),
                options.memory,
                missing,
                finished,
                report,
            )
        finally:
            if found is not None:
                part.provenance = self._provenance(found)
            kept.save()

    def _provenance(self, found: "_alps._Scan") -> dict[str, str]:
        fields: dict[str, str] = {}
        for role, source, files in (
            ("base", self._base, found["base"]),
            ("tuned", self._tuned, found["tuned"]),
        ):
            fields |= source.provenance(role)
            fields |= {f"{role}_{name}": str(value) for name, value in files.items() if value is not None}
            stored = self.identity[f"{role}_files"]
            fields[f"{role}_file_count"] = str(len(stored))
            fields[f"{role}_bytes"] = str(sum(length for _, length, _ in stored))
        return {
            **fields,
            "form": self.options.form,
            "temperature": repr(self.options.temperature),
            "alps": _alps.__version__,
        }


def _tells_states_apart(version: str) -> bool:
    """Whether a version is none of those that tools give to all files: no text, or a time before 1990."""
    return bool(version) and not (version.isdecimal() and int(version) < 631_152_000 * 10**9)


def scores_of(part: Part) -> HeadScores:
    """The scores of a part that has all layers: the statistics that were asked for."""
    arrays, provenance = part.arrays(), dict(part.provenance)
    change = next(arrays[name] for name in ZERO_IF_UNMOVED if name in arrays)
    if (moved := int((change > 0).sum())) < part.geometry.heads:
        provenance[HEADS_MOVED] = str(moved)
    return HeadScores({name: arrays[name] for name in part.identity["statistics"]}, part.geometry, provenance)
