"""The whole method on a tiny Llama, trained on the spot: `alps demo`.

Needs the extras `train` and `plot`, and is imported only where the demo is asked for.
"""

from alps.demo.results import Results
from alps.demo.settings import Settings
from alps.demo.story import run
from alps.demo.team import cores

__all__ = ["Results", "Settings", "cores", "run"]
