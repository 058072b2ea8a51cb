"""The whole method on a tiny Llama that is trained on the spot: `alps demo`.

Needs the extras `train` and `plot`; only the command imports it.
"""

from alps.demo.experiment import Settings
from alps.demo.results import Results
from alps.demo.steps import run
from alps.demo.workers import cores

__all__ = ["Results", "Settings", "cores", "run"]
