"""`import alps` imports no heavy package."""

import subprocess
import sys

HEAVY = {
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


def test_importing_alps_imports_nothing_heavy() -> None:
    code = "import sys, alps; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "numpy" in imported
    assert not imported & HEAVY
