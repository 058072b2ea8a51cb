"""`import alps` imports no heavy package, and each name of it when it is asked for."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import alps

HEAVY = {
    "numpy",
    "torch",
    "transformers",
    "matplotlib",
    "typer",
    "rich",
    "safetensors",
    "scipy",
    "huggingface_hub",
    "jinja2",
    "pandas",
}


def packages_imported_by(code: str) -> set[str]:
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_alps_imports_nothing_heavy() -> None:
    assert not packages_imported_by("import alps") & HEAVY


def test_a_scan_needs_numpy_and_nothing_heavier() -> None:
    imported = packages_imported_by("import alps; alps.scan")
    assert "numpy" in imported
    assert not imported & (HEAVY - {"numpy"})


@pytest.mark.parametrize("name", ["scan", "compare", "graft", "geometry"])
def test_a_function_and_the_module_of_its_name_do_not_get_in_each_others_way(name: str) -> None:
    for order in (
        f"import alps, alps.{name}",
        f"from alps.{name} import __name__ as n; import alps; alps.{name}",
    ):
        code = f"{order}; assert callable(alps.{name}), alps.{name}; from alps import {name}; assert callable({name})"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_and_their_types_are_the_same() -> None:
    tree = ast.parse(Path(str(alps.__file__)).read_text(encoding="utf-8"))
    typed = {
        (imported.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for imported in block.body
        if isinstance(imported, ast.ImportFrom) and str(imported.module).startswith("alps")
        for alias in imported.names
    }
    assert sorted(name for _, name in typed) == sorted(alps.__all__)
    for module, name in typed:
        assert getattr(alps, name) is getattr(import_module(str(module)), name)
    assert isinstance(alps.statistics, ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = alps.nonsense
