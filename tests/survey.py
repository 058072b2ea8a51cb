"""Builds a tiny model of every model type of transformers and writes what its file holds."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from queue import Queue
from typing import Any


def one(model_type: str, out: Path) -> dict:
    import torch

    import attention
    import proof
    import shrink

    best: dict[str, Any] | None = None
    for attempts in (shrink.ATTEMPTS, ((0, True),), ((2, False),), ((2, True),), ((3, True),)):
        try:
            model, level = shrink.build(model_type, attempts)
        except ValueError as error:
            return best or {"built": False, "why": str(error)[:3000]}
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        looks = attention.looks_like_attention(model)
        known, runs, failures = proof.truths(model) if looks else ([], [], {})
        missing = sorted({attention.layered(n)[0] for n in attention.not_run(model, {truth.module for truth in known})})
        answer: dict[str, Any] = {
            "built": True,
            "level": level,
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "attention_ran": sorted({truth.pattern for truth in known}),
            "attention_not_run": missing,
            "failures": failures,
        }
        if best is None or len(missing) < len(best["attention_not_run"]):
            best = answer
            with tempfile.TemporaryDirectory() as scratch:
                model.save_pretrained(Path(scratch) / "base")
                write(Path(scratch) / "base", known, out / model_type)
                result = proof.prove(Path(scratch) / "base", known, Path(scratch))
            best["proof"] = dataclasses.asdict(result)
        if not missing or answer["parameters"] > 5_000_000:
            break
    assert best is not None
    return best


def write(base: Path, known: list[Any], folder: Path) -> None:
    from safetensors import safe_open

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                tensors[name] = [part.get_dtype(), part.get_shape()]
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    (folder / "tensors.json").write_text(json.dumps(tensors, indent=0, sort_keys=True))
    lines = []
    for truth in known:
        entry = {"module": truth.module, "heads": truth.heads, "others": truth.others}
        for role, part in truth.rows.items():
            runs: list[list[Any]] = []
            for row, owners in enumerate(part.owners):
                if runs and runs[-1][2] == sorted(owners):
                    runs[-1][1] = row + 1
                else:
                    runs.append([row, row + 1, sorted(owners)])
            entry[role] = {part.tensor: {"axis": part.axis, "rows": runs}}
        lines.append(json.dumps(entry))
    (folder / "stacks.json").write_text("[" + ",\n".join(lines) + "]\n")


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
        start = time.time()
        print(line, file=sys.stderr, flush=True)
        try:
            answer = one(line.strip(), out)
        except Exception as error:
            answer = {"built": False, "why": f"{type(error).__name__}: {error}"[:2000]}
        gc.collect()
        answer["seconds"] = round(time.time() - start, 2)
        print(json.dumps(answer), file=answers, flush=True)


def drive(out: Path, types: Queue, facts: dict, lock: threading.Lock, limit: float) -> None:
    def start():
        return subprocess.Popen([sys.executable, __file__, "--worker", str(out)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=open(out / f'log.{threading.get_ident()}', 'w'), text=True)
    process = start()
    process.stdout.readline()
    while not types.empty():
        model_type = types.get()
        process.stdin.write(model_type + "\n")
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
    for model_type in wanted:
        types.put(model_type)
    lock = threading.Lock()
    threads = [threading.Thread(target=drive, args=(out, types, facts, lock, 180.0)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(Path(sys.argv[2]))
    else:
        main()
