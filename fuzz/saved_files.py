"""Fuzzes the files that alps saves, guided by the coverage of its Python code.

Run as `PYTHONPATH=tests python fuzz/saved_files.py TARGET CORPUS...`, with the options of libFuzzer. Needs atheris, which is no
dependency of the tests.
"""

import sys

import atheris

with atheris.instrument_imports(include=["alps"]):
    from support.saved_files import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
