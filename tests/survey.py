"""Builds a tiny model of every model type of transformers and writes what its file holds."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from queue import Queue
from typing import Any


def find(model_type: str, out: Path) -> dict[str, Any]:
    """Builds a model, finds its attention, and leaves its checkpoint and what was found in `out`."""
    import attention
    import models
    import proof

    best: dict[str, Any] | None = None
    folder = out / model_type
    start = time.process_time()
    for attempts in (models.ATTEMPTS, ((0, True),), ((2, True),), ((3, True),)):
        try:
            model = models.build(model_type, attempts)
        except ValueError as error:
            if best is None:
                best = {"built": False, "why": str(error)[:3000]}
            break
        looks = attention.looks_like_attention(model)
        known, _, failures = proof.truths(model) if looks else ([], [], {})
        missing = sorted({attention.layered(n)[0] for n in attention.not_run(model, {truth.module for truth in known})})
        if best is None or len(missing) < len(best["attention_not_run"]):
            best = {
                "built": True,
                "class": type(model).__name__,
                "parameters": sum(p.numel() for p in model.parameters()),
                "attention_ran": sorted({truth.pattern for truth in known}),
                "attention_not_run": missing,
                "failures": failures,
            }
            shutil.rmtree(folder, ignore_errors=True)
            model.save_pretrained(folder / "base")
            describe(folder, known)
        if not missing or time.process_time() - start > 5:
            break
    assert best is not None
    return best


def describe(folder: Path, known: list[Any]) -> None:
    from safetensors import safe_open

    tensors = {}
    with safe_open(folder / "base" / "model.safetensors", "pt") as opened:
        for name in opened.keys():
            part = opened.get_slice(name)
            tensors[name] = [part.get_dtype(), part.get_shape()]
    (folder / "config.json").write_bytes((folder / "base" / "config.json").read_bytes())
    (folder / "tensors.json").write_text(json.dumps(tensors, indent=0, sort_keys=True))
    lines = ",\n".join(json.dumps(truth.to_json()) for truth in known)
    (folder / "stacks.json").write_text(f"[{lines}]\n")


def check(model_type: str, out: Path) -> dict[str, Any]:
    """Holds scans of a model that `find` has left against what was found."""
    import proof

    folder = out / model_type
    known = [proof.Truth.from_json(values) for values in json.loads((folder / "stacks.json").read_text())]
    with tempfile.TemporaryDirectory() as scratch:
        return dataclasses.asdict(proof.prove(folder / "base", known, Path(scratch)))


def one(model_type: str, out: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Whatever of both is not known yet."""
    answer = known or find(model_type, out)
    if answer["built"] and "FIND" not in os.environ:
        answer["proof"] = check(model_type, out)
    return answer


def worker(out: Path) -> None:
    import torch
    import transformers

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        start, cpu = time.time(), time.process_time()
        print(line, file=sys.stderr, flush=True)
        try:
            model_type, known = json.loads(line)
            answer = one(model_type, out, known)
        except Exception as error:
            answer = {"built": False, "why": f"{type(error).__name__}: {error}"[:2000]}
        gc.collect()
        answer["seconds"] = round(time.time() - start, 2)
        answer["cpu"] = round(time.process_time() - cpu, 2)
        print(json.dumps(answer), file=answers, flush=True)


def drive(out: Path, types: Queue, facts: dict, lock: threading.Lock, limit: float) -> None:
    def start():
        return subprocess.Popen([sys.executable, __file__, "--worker", str(out)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=open(out / f'log.{threading.get_ident()}', 'w'), text=True)
    process = start()
    process.stdout.readline()
    while not types.empty():
        model_type = types.get()
        known = {k: v for k, v in facts.get(model_type, {}).items() if k != "proof"}
        process.stdin.write(json.dumps([model_type, known]) + "\n")
        process.stdin.flush()
        timer = threading.Timer(limit, process.kill)
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        if line:
            answer = json.loads(line)
        else:
            answer = {"built": False, "why": f"no answer within {limit} s, or a crash"}
            process.wait()
            process = start()
            process.stdout.readline()
        with lock:
            facts[model_type] = answer
            (out / "facts.json.new").write_text(json.dumps(facts, indent=1, sort_keys=True))
            (out / "facts.json.new").replace(out / "facts.json")
    process.stdin.close()


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(exist_ok=True)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    wanted = sys.argv[2:] or list(CONFIG_MAPPING_NAMES)
    facts = json.loads((out / "facts.json").read_text()) if (out / "facts.json").exists() else {}
    types: Queue = Queue()
    random.Random(0).shuffle(wanted)
    for model_type in wanted:
        types.put(model_type)
    lock = threading.Lock()
    threads = [threading.Thread(target=drive, args=(out, types, facts, lock, 180.0)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(Path(sys.argv[2]))
    else:
        main()
