"""Makes the windows of the tasks, runs the experiment, and writes the page.

python -m evidence data FOLDER --tokenizer DIR --german DIR --python DIR --english DIR
python -m evidence run FOLDER --model PATH --results DIR [--seconds S]
python -m evidence page --results DIR --output docs/evidence.md
"""

import argparse
from pathlib import Path


def main() -> None:
    """Runs a command."""
    parser = argparse.ArgumentParser(
        prog="evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="make the windows of all tasks")
    data.add_argument("folder", type=Path)
    data.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer")
    data.add_argument("--gguf-file", help="name of the GGUF file in that folder, if it holds the tokenizer")
    data.add_argument("--german", type=Path, required=True, help="folder of German manual pages")
    data.add_argument("--python", type=Path, required=True, help="folder of Python sources")
    data.add_argument("--english", type=Path, required=True, help="folder of English HTML pages")
    run = commands.add_parser("run", help="run what is not in the results yet")
    run.add_argument("folder", type=Path, help="windows of the tasks")
    run.add_argument("--model", type=Path, required=True, help="folder or GGUF file of a Llama")
    run.add_argument("--results", type=Path, required=True)
    run.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    run.add_argument("--stages", nargs="*", help="only these stages")
    run.add_argument("--tasks", nargs="*", help="only these tasks")
    run.add_argument("--ratios", nargs="*", type=float, help="of the sweep, only these")
    run.add_argument("--compile", action="store_true", help="compile the layer")
    run.add_argument("--small", action="store_true", help="a few steps of a few arms, to try it")
    page = commands.add_parser("page", help="write the page from the results")
    page.add_argument("--results", type=Path, required=True)
    page.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "data":
        from evidence.data import make

        make(
            options.folder,
            options.tokenizer,
            options.german,
            options.python,
            options.english,
            options.gguf_file,
        )
    elif options.command == "run":
        from evidence.run import run_experiment

        run_experiment(options)
    else:
        from evidence.page import write_page
        from evidence.picture import write_picture

        write_page(options.results, options.output)
        write_picture(options.results, options.output.parent / "images" / "evidence.png")


if __name__ == "__main__":
    main()
