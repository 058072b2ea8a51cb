"""Registers the adapter of alps with PEFT as soon as both are imported, in either order.

PEFT has no way to find methods of other packages. `import alps` must not import PEFT and torch, so the registration
waits for the import of PEFT.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    # These modules take longer to import than all else that `import alps` does, and their classes are not needed.
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def register_with_peft() -> None:
    """Registers at once if PEFT is imported, else when it is."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


def _register() -> None:
    import contextlib

    # Training needs more than PEFT; `alps.restrict` says what is missing.
    with contextlib.suppress(ImportError):
        import alps.training  # noqa: F401 (registers)


class _PeftFinder:
    """Finds PEFT, and nothing else, through the other finders, and lets `_PeftLoader` load it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _PeftLoader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _PeftLoader:
    """Loads PEFT by its own loader, and registers afterwards."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps no trace of this loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _PeftFinder)]
        _register()
