"""What alps raises when it refuses.

Refusals of the operating system stay Python's own (FileNotFoundError, PermissionError, ...).
"""


class AlpsError(Exception):
    """The base of all refusals."""


class CheckpointError(AlpsError):
    """A file is not what its name promises: truncated, malformed, inconsistent, of another format."""


class ModelError(AlpsError):
    """The model is of no known layout, or contradicts its own configuration."""


class PairError(AlpsError):
    """The two checkpoints are not two states of one model."""


class WeightsError(AlpsError):
    """A weight is not a number that a score can be made of."""


class ArgumentError(AlpsError, ValueError):
    """An argument is out of its domain."""


class MissingPackageError(AlpsError, ImportError):
    """An optional package that a call needs is not installed."""
