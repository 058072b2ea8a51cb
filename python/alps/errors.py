"""The exceptions that alps raises.

Errors of the operating system stay Python's own (FileNotFoundError, PermissionError, ...).
"""


class AlpsError(Exception):
    """The base class of all exceptions of alps.

    Examples:
        >>> try:
        ...     alps.scan("base", "tuned", temperature=-1.0)
        ... except alps.AlpsError as error:
        ...     print(type(error).__name__)
        ArgumentError
    """

    path: str | None = None
    """The file or folder that was refused, where there is one."""


class CheckpointError(AlpsError):
    """A file is not what its name promises: it is truncated, malformed, inconsistent, or of another format."""

    tensor: str | None = None
    """The tensor that was read when the file turned out to be truncated."""


class ModelError(AlpsError):
    """The model is of no known layout, or contradicts its own configuration."""


class PairError(AlpsError):
    """The two checkpoints are not two states of one model."""

    base: str | None = None
    """The base checkpoint."""
    tuned: str | None = None
    """The tuned checkpoint."""


class WeightsError(AlpsError, ValueError):
    """A weight is not a number that a score or a model can be made of.

    Where it is a single weight, the attributes say which.
    """

    tensor: str | None = None
    """The tensor that holds it."""
    position: tuple[int, int] | None = None
    """Its place in the tensor."""
    role: str | None = None
    """The kind of its head: "query", "key" or "value"."""
    head: int | None = None
    """The number of its head within the layer: of a query head, or of a key/value group."""
    layer: int | None = None
    """The number of the layer."""
    value: float | None = None
    """The weight."""


class UnchangedError(AlpsError):
    """No head has moved, so that none can be selected: the attention weights of both checkpoints are equal."""


class ArgumentError(AlpsError, ValueError):
    """An argument is out of its domain."""


class MissingPackageError(AlpsError, ImportError):
    """An optional package that a call needs is not installed."""


class WorkerError(AlpsError):
    """A worker of an executor failed three times with the same layers."""


class AlpsWarning(UserWarning):
    """Something that a user should know of, and that may be meant."""
