"""Checks alps with every model type of transformers, and writes the table `docs/models.md`.

    PYTHONPATH=tests python -m layouts.survey [--rebuild] [MODEL_TYPE ...]

Building and running a model of each type takes most of the time, so what was found stays in `build/models` for the next
survey. Only a survey of all types writes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from layouts import coverage_table, proof, published_forms, training_proof

FOLDER = Path(__file__).parents[2] / "build" / "models"
SECONDS = 300
"""For one model. After that it counts as not built."""
MEMORY = 6 << 30
"""The bytes of memory that a worker may use."""
LARGEST = 8 << 20
"""The largest size, in bytes, of a checkpoint that is kept for the next survey."""


def find(model_type: str) -> dict[str, Any]:
    """Builds a model and finds its attention. Writes its checkpoint and what was found to a folder of its own."""
    try:
        known = proof.trace_model(model_type)
    except ValueError as error:
        return {"built": False, "why": str(error)[:2000]}
    folder = FOLDER / model_type
    shutil.rmtree(folder, ignore_errors=True)
    known.model.save_pretrained(folder / "base")
    (folder / "attentions.json").write_text(
        json.dumps([attention.to_json() for attention in known.attentions])
    )
    return {
        "built": True,
        "class": type(known.model).__name__,
        "attention_ran": sorted({attention.pattern for attention in known.attentions}),
        "attention_not_run": known.left,
        "failures": known.failures,
        "training": training_proof.prove_training(known.model, known.runs),
    }


def is_kept(model_type: str, facts: dict[str, Any]) -> bool:
    """Tells whether the files of an earlier `find` are still there."""
    return bool(facts) and (not facts["built"] or (FOLDER / model_type / "attentions.json").exists())


def delete_if_large(model_type: str) -> None:
    """Deletes the checkpoint of a model if it is too large to keep."""
    folder = FOLDER / model_type
    if folder.exists() and sum(file.stat().st_size for file in folder.rglob("*")) > LARGEST:
        shutil.rmtree(folder)


def check(model_type: str) -> dict[str, Any]:
    """Compares scans of a model with the attention that `find` has written."""
    folder = FOLDER / model_type
    known = [
        proof.ComputedAttention.from_json(values)
        for values in json.loads((folder / "attentions.json").read_text())
    ]
    with tempfile.TemporaryDirectory() as scratch:
        return dataclasses.asdict(proof.prove(folder / "base", known, Path(scratch)))


def work() -> None:
    """Reads a model type and its known facts from each line of standard input, and writes a line with all its facts."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of the models must not mix with the answers
    for line in sys.stdin:
        model_type, facts = json.loads(line)
        try:
            facts = facts if is_kept(model_type, facts) else find(model_type)
            if facts["built"]:
                facts["proof"] = check(model_type)
                facts["forms"] = published_forms.read_forms(FOLDER / model_type / "base")
                delete_if_large(model_type)
        except Exception as error:  # one model must not end the survey
            facts = {"built": False, "why": f"{type(error).__name__}: {error}"[:2000]}
        gc.collect()
        print(json.dumps(facts), file=answers, flush=True)


class Worker:
    """A process that surveys models, and is started again if one crashes or hangs."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "layouts.survey", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def ask(self, model_type: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Returns the facts of this type."""
        assert self._process.stdin
        assert self._process.stdout
        timer = threading.Timer(SECONDS, self._process.kill)
        timer.start()
        self._process.stdin.write(json.dumps([model_type, facts]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            self._process.wait()
            self._process = self._start()
            return {"built": False, "why": f"its process crashed, or took more than {SECONDS} seconds"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def survey(model_types: list[str], facts: dict[str, Any]) -> None:
    """Surveys these types on all cores. Adds to `facts`, and writes them to disk after each type."""
    left: queue.SimpleQueue[str] = queue.SimpleQueue()
    for model_type in model_types:
        left.put(model_type)
    lock = threading.Lock()

    def one_worker() -> None:
        worker = Worker()
        while True:
            try:
                model_type = left.get_nowait()
            except queue.Empty:
                break
            known = {key: value for key, value in facts.get(model_type, {}).items() if key != "proof"}
            answer = worker.ask(model_type, known)
            with lock:
                facts[model_type] = answer
                (FOLDER / "facts.json").write_text(json.dumps(facts))
                print(
                    f"{left.qsize()} to go: {model_type}: {coverage_table.Row.of_facts(answer).status}",
                    flush=True,
                )
        worker.close()

    threads = [threading.Thread(target=one_worker) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Surveys the model types that the command line names, by default all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE")
    parser.add_argument(
        "--rebuild", action="store_true", help="also build and run models that are known already"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = FOLDER / "facts.json"
    facts: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    model_types = arguments.model_types or sorted(set(CONFIG_MAPPING.keys()))
    if arguments.rebuild:
        facts = {model_type: known for model_type, known in facts.items() if model_type not in model_types}
    survey(model_types, facts)
    if not arguments.model_types:
        coverage_table.FILE.write_text(coverage_table.write(facts, transformers.__version__))


if __name__ == "__main__":
    main()
