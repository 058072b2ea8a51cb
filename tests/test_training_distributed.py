"""Two processes train the same as one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import alps
from support import distributed_worker
from support.training import chosen, masks, tiny_model

pytestmark = [
    # PEFT still asks what transformers deprecates.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # torch says that it loads for one process.
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
]
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
    "ddp:llama:adapter:float64",
    "fsdp:llama:adapter:float64",
    "fsdp1:llama:freeze:float64",
    "fsdp1:llama:adapter:float64",
    "fsdp-dcp:llama:train:float64",
    "fsdp-dcp:llama:adapter:float64",
]
PAIRS_OF_FORMATS = [
    f"fsdp-{computed_in}:llama:{others}:{dtype}"
    for dtype in ("float32", "bfloat16")
    for computed_in in ("float32", "bfloat16")
    for others in ("train", "freeze", "adapter")
]
MASKED = [f"fsdp-{computed_in}:llama:masked:float32" for computed_in in ("float32", "bfloat16")]
MEASURED = "measure:llama:float64"


def launch(
    launcher: tuple[str, ...], folder: Path, jobs: list[str], worker: str = "support.distributed_worker"
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", worker, str(folder), *jobs],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "AlpsWarning" not in run.stderr, run.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes have trained."""
    folder = tmp_path_factory.mktemp("distributed")
    launch(TORCHRUN, folder, [*JOBS, *PAIRS_OF_FORMATS, *MASKED, MEASURED])
    return folder


def assert_same_as_one_process(job: str, folder: Path) -> None:
    _, *what = job.split(":")
    expected = distributed_worker.work(folder, "single", *what)
    start = distributed_worker.restricted(what[0], getattr(torch, what[2]), what[1]).state_dict()
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


def test_the_trainer_with_the_callback_under_fsdp2(tmp_path: Path) -> None:
    launch(TORCHRUN, tmp_path, [], "support.trainer_worker")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    model = tiny_model(dtype=torch.float32)
    mask, moved = masks(model, chosen(model)), 0
    assert saved.keys() == model.state_dict().keys()
    for name, before in model.state_dict().items():
        entries = mask.get(name, torch.zeros_like(before, dtype=torch.bool))
        assert torch.equal(saved[name][~entries], before[~entries]), name
        moved += int((saved[name] != before).sum())
    assert moved > 0.9 * sum(int(entries.sum()) for entries in mask.values())
    assert alps.HeadSet.from_pretrained(tmp_path / "out") == chosen(model)


def test_training_resumes_exactly_from_a_gathered_state(results: Path) -> None:
    expected, found = (load_file(results / f"{way}:{EXACT}.safetensors") for way in ("fsdp", "fsdp-resumed"))
    assert found.keys() == expected.keys()
    assert all(it.dtype == torch.bfloat16 for it in found.values())
    assert all(torch.equal(it, expected[name]) for name, it in found.items())


@pytest.mark.parametrize("job", PAIRS_OF_FORMATS)
def test_formats_of_the_model_and_of_the_computation(job: str, results: Path) -> None:
    _, model_type, others, dtype = job.split(":")
    found = load_file(results / f"{job}.safetensors")
    plain = tiny_model(model_type, getattr(torch, dtype))
    start = distributed_worker.restricted(model_type, getattr(torch, dtype), others).state_dict()
    mask = masks(plain, chosen(plain))
    moved = 0
    for name, tensor in found.items():
        if "alps_rows" in name:
            assert tensor.dtype == torch.float32
            moved += int((tensor != start[name]).sum())
        elif others != "adapter" and name in mask:
            assert torch.equal(tensor[~mask[name]], start[name][~mask[name]]), name
            moved += int((tensor != start[name]).sum())
        elif others != "train":
            assert torch.equal(tensor, start[name]), name
    assert moved > 0.8 * sum(int(it.sum()) for it in mask.values())


@pytest.mark.parametrize("masked", MASKED)
def test_rows_train_as_with_masked_steps_of_the_whole_model(masked: str, results: Path) -> None:
    expected = load_file(results / f"{masked}.safetensors")
    found = load_file(results / f"{masked.replace('masked', 'train')}.safetensors")
    start = tiny_model("llama", torch.float32).state_dict()
    for name, tensor in found.items():
        change = (expected[name] - start[name]).abs().max()
        assert (tensor - expected[name]).abs().max() <= (1e-3 if "float32:" in masked else 0.1) * change, name


def test_a_distributed_checkpoint_is_resumed_by_another_number_of_processes(results: Path) -> None:
    model = distributed_worker.restricted("llama", torch.float64, "train")
    optimizer = distributed_worker.optimizer_of(model)
    distributed_worker.resume(model, optimizer, results / "dcp-llama-train-float64")
    distributed_worker.steps(model, optimizer, distributed_worker.STEPS // 2, distributed_worker.STEPS)
    expected = load_file(results / "fsdp:llama:train:float64.safetensors")
    for name, tensor in model.state_dict().items():
        assert (tensor - expected[name]).abs().max() <= 1e-6 * expected[name].abs().max(), name


def test_tensor_parallelism_is_refused_before_anything_changes(tmp_path: Path) -> None:
    launch(TORCHRUN, tmp_path, [], "support.tensor_parallel_worker")
