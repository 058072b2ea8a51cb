"""The installed package finds the changed head of a checkpoint, through Python and through the command."""

import subprocess
import sys
from pathlib import Path

from support import installed_wheel


def test_the_installed_package_works(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", installed_wheel.__file__, tmp_path], check=True)
