"""The type stubs of the extension."""

import subprocess
import sys
from pathlib import Path

# The stub needs alps and NumPy. What the rest of alps imports would take minutes to read.
UNREAD = ("accelerate", "jinja2", "matplotlib", "pandas", "peft", "rich", "torch", "transformers", "typer")


def test_the_stub_describes_the_extension(tmp_path: Path) -> None:
    configuration = tmp_path / "mypy.ini"
    configuration.write_text(
        f"[mypy]\n[mypy-{','.join(f'{name}.*' for name in UNREAD)}]\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy.stubtest", "alps._alps", "--mypy-config-file", str(configuration)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
