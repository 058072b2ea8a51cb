"""Running the stages in order, on whatever device there is, until they are done or the time is up."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

import alps
from evidence import checkpoint, llama, tasks
from evidence.experiment import Experiment, OutOfTimeError, Settings

SMALL = Settings(
    steps=3, text_rows=2, answer_rows=4, rates=(1e-3,), train_rates=(1e-4,), seeds=(0, 1), train_seeds=(1,),
    graft_seeds=(0,), measured=4, tried=2, draws=4, ratios=(0.2,), sweep_seeds=(1,), tokens=2048, train_arms=4,
)  # fmt: skip


def stages(experiment: Experiment) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Name, task and call of every stage, the most wanted first."""
    settings, names = experiment.settings, list(experiment.tasks)
    yield "untouched", "all", experiment.untouched
    for task in names:
        yield "prepare", task, lambda task=task: experiment.prepare(task)  # type: ignore[misc]
    for task in names:
        yield "rates", task, lambda task=task: experiment.rates(task)  # type: ignore[misc]
    for task in names:
        yield "draw", task, lambda task=task: experiment.draw(task)  # type: ignore[misc]

    def of_seeds(
        name: str, call: Callable[[str, Sequence[int]], None], seeds: Sequence[int]
    ) -> Iterator[Any]:
        for task in names:
            yield name, task, lambda task=task: call(task, seeds)

    yield from of_seeds("compare", experiment.compare, settings.seeds[1:4])
    for task in names:
        yield "train_rates", task, lambda task=task: experiment.train_rates(task)  # type: ignore[misc]
    yield from of_seeds("train", experiment.compare_with_others, settings.train_seeds)
    yield from of_seeds("compare", experiment.compare, settings.seeds[4:])
    yield from of_seeds("sweep", experiment.sweep, settings.sweep_seeds)


def run_experiment(options: argparse.Namespace) -> None:
    """The command `run`."""
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes, tensors = checkpoint.read(options.model)
    base = llama.arrange({name: it.to(device, dtype) for name, it in tensors.items()}, sizes)
    found = tasks.load(options.folder, device)
    run: Callable[..., torch.Tensor] = llama.layer
    if options.compile:
        run = torch.compile(llama.layer, dynamic=False, fullgraph=True)
    settings = SMALL if options.small else Settings()
    if device.type == "cpu":
        settings = replace(settings, tokens=1, train_arms=1)  # a result each: more at a time are no faster
    if options.ratios:
        settings = replace(settings, ratios=tuple(options.ratios))
    experiment = Experiment(
        base,
        sizes,
        {name: it for name, it in found.items() if not options.tasks or name in {*options.tasks, "general"}},
        options.results,
        settings,
        seconds=options.seconds - (time.monotonic() - start),
        run=run,
        pad=options.compile,
    )
    about = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "dtype": str(dtype),
        "torch": torch.__version__,
        "alps": alps.__version__,
        "settings": experiment.settings.__dict__,
    }
    about_file = options.results / f"about-{device.type}.json"
    about_file.write_text(json.dumps(about, indent=2) + "\n")
    try:
        for name, task, call in stages(experiment):
            if not options.stages or name in options.stages:
                before = time.monotonic()
                call()
                print(
                    f"[{time.monotonic() - start:.0f} s] {name} {task}: {time.monotonic() - before:.1f} s",
                    flush=True,
                )
    except OutOfTimeError as reason:
        print(f"stopped for time before: {reason}", flush=True)
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
