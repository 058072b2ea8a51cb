"""Two processes train the same as one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import distributed_worker
from support.training import tiny_model

TORCHRUN = (
    "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
)  # fmt: skip
ACCELERATE = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
    "--dynamo_backend=no", "--main_process_port=0",
)  # fmt: skip
EXACT = "llama:train:bfloat16"
JOBS = [
    "ddp:llama:train:float64",
    "fsdp:llama:train:float64",
    "fsdp-resumed:gpt2:freeze:float64",
    f"fsdp:{EXACT}",
    f"fsdp-resumed:{EXACT}",
]
MEASURED = "measure:llama:float64"


def launch(launcher: tuple[str, ...], folder: Path, jobs: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "support.distributed_worker", str(folder), *jobs],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes have trained."""
    folder = tmp_path_factory.mktemp("distributed")
    launch(TORCHRUN, folder, [*JOBS, MEASURED])
    return folder


def assert_same_as_one_process(job: str, folder: Path) -> None:
    _, *what = job.split(":")
    expected = distributed_worker.work("single", *what)
    start = tiny_model(what[0]).state_dict()
    assert any(not torch.equal(it, start[name]) for name, it in expected.items())
    found = load_file(folder / f"{job}.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert (tensor - expected[name]).abs().max() <= 1e-6 * expected[name].abs().max(), name


@pytest.mark.parametrize("job", [job for job in JOBS if job.endswith("float64")])
def test_two_processes_train_the_same_as_one(job: str, results: Path) -> None:
    assert_same_as_one_process(job, results)


def test_two_processes_measure_the_same_as_one(results: Path) -> None:
    expected = distributed_worker.measured(*MEASURED.split(":")[1:])
    found = load_file(results / f"{MEASURED}.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        # transformers computes the loss in float32.
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=0)


def test_accelerate_launch(tmp_path: Path) -> None:
    job = "accelerate:llama:train:float64"
    launch(ACCELERATE, tmp_path, [job])
    assert_same_as_one_process(job, tmp_path)


def test_training_resumes_exactly_from_a_gathered_state(results: Path) -> None:
    expected, found = (load_file(results / f"{way}:{EXACT}.safetensors") for way in ("fsdp", "fsdp-resumed"))
    assert found.keys() == expected.keys()
    assert all(it.dtype == torch.bfloat16 for it in found.values())
    assert all(torch.equal(it, expected[name]) for name, it in found.items())
