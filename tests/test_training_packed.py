"""Training of chosen heads over weights that bitsandbytes has packed into 4 or 8 bits."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, LlamaConfig, Qwen2Config

import alps
from alps.training import attention, quantised
from alps.training.packed_projection import PackedProjection
from support.training import Model, run_trainer, tokens, trainable

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")

FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4, nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4 in bfloat16": {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
}
# bitsandbytes' kernel for CPUs needs rows that are whole blocks of 64.
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
PAIRS = [(0, 1), (0, 3)]
"""Two heads of the first layer; the projections of the second have no rows that train."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama, and a Qwen2 whose projections have biases."""
    folders = {}
    for config in (LlamaConfig(**SIZES), Qwen2Config(**SIZES)):
        torch.manual_seed(0)
        model: Model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        folders[config.model_type] = tmp_path_factory.mktemp(config.model_type)
        model.save_pretrained(folders[config.model_type])
    return folders


def load(folder: Path, kind: str | None = "nf4", dtype: torch.dtype = torch.float32) -> Model:
    settings = None if kind is None else BitsAndBytesConfig(**FORMATS[kind])
    # In evaluation mode, some CPUs round the scales of the weights, and no module before has gradients.
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=dtype).train()


def heads_of(model: Model) -> alps.HeadSet:
    return alps.HeadSet.from_pairs(PAIRS, attention.find(model, quantised=True).geometry)


def loss_of(model: Model, seed: int = 0) -> Tensor:
    batch = tokens(seed).remainder(SIZES["vocab_size"])
    loss: Tensor = model(input_ids=batch, labels=batch).loss
    return loss


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=tokens(9).remainder(SIZES["vocab_size"])).logits
    return output


def train(model: Model, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.1)
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def packed(model: Model) -> Iterator[tuple[str, PackedProjection]]:
    return ((name, it) for name, it in model.named_modules() if isinstance(it, PackedProjection))


def stored(model: Model) -> dict[str, Tensor]:
    """The bits of what does not train in the modules that are packed."""
    parameters = ((name, it) for name, it in model.named_parameters() if "rows" not in name)
    return {
        name.replace(".base_layer", ""): it.detach().clone()
        for name, it in parameters
        if not it.requires_grad
    }


@pytest.mark.parametrize("others", ["train", "freeze"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", FORMATS)
def test_gradients_are_those_of_the_dequantised_model(
    kind: str, model_type: str, others: Any, bases: dict[str, Path]
) -> None:
    plain = load(bases[model_type], kind).dequantize(dtype=torch.float32)
    plain.requires_grad_(True)
    model = load(bases[model_type], kind)
    report = alps.restrict(model, heads_of(model), others=others)
    expected = loss_of(plain)
    expected.backward()
    loss = loss_of(model)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=2e-3 if kind == "int8" else 1e-6)
    # bitsandbytes computes products of int8 weights in bfloat16.
    tolerance = 5e-2 if kind == "int8" else 1e-5
    rows = 0
    for name, projection in packed(model):
        reference = plain.get_submodule(name)
        for own, whole in ((projection.rows, reference.weight), (projection.bias_rows, reference.bias)):
            assert (own is None) == (whole is None or "layers.1" in name)
            if own is None:
                continue
            rows += own.numel()
            assert own.dtype == torch.float32
            assert torch.equal(own, whole[projection.indices])
            gradient = whole.grad[projection.indices]
            # The gradient of a bias of keys is rounding noise.
            if not ("k_proj" in name and own is projection.bias_rows):
                assert (own.grad - gradient).abs().max() < tolerance * gradient.abs().max()
    assert rows == sum(report.trainable.values()) - report.trainable["other"]
    total = sum(report.trainable.values()) + sum(report.frozen.values())
    assert total == sum(it.numel() for it in plain.parameters())
    assert (report.trainable["other"] > 0) == (others == "train")


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.AdamW,
        functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
        torch.optim.RMSprop,
    ],
    ids=["AdamW", "SGD", "RMSprop"],
)
def test_optimizers_move_the_rows_and_nothing_that_is_packed(make: Any, bases: dict[str, Path]) -> None:
    model = load(bases["qwen2"])
    alps.restrict(model, heads_of(model), others="freeze")
    before = stored(model)
    rows = {name: it.detach().clone() for name, it in model.named_parameters() if it.requires_grad}
    assert len(rows) == 6
    optimizer = make(model.parameters(), lr=1e-2)
    for step in range(3):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = stored(model)
    assert all(torch.equal(it, after[name]) for name, it in before.items())
    assert all((model.get_parameter(name) != it).any() for name, it in rows.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_released_model_saves_what_was_trained(
    kind: str, dtype: torch.dtype, bases: dict[str, Path], tmp_path: Path
) -> None:
    model = load(bases["qwen2"], kind, dtype)
    alps.restrict(model, heads_of(model))
    train(model)
    rows = {name: (it.indices, it.rows) for name, it in packed(model)}
    frozen = {name: quantised.float_weight(it.base_layer).to(dtype) for name, it in packed(model)}
    before = logits(model)
    with pytest.raises(
        alps.ModelError, match=r"layers.0.self_attn.q_proj: expected a weight that can hold.*Linear"
    ):
        model.state_dict()
    with pytest.raises(alps.ModelError, match=r"call alps.release\(model\) before saving or loading"):
        model.save_pretrained(tmp_path / "early")
    assert not list(tmp_path.glob("early/*.safetensors"))
    with pytest.raises(alps.ModelError, match="before saving or loading"):
        model.load_state_dict({}, strict=False)

    alps.release(model)
    assert not list(packed(model))
    # The products of int8 weights are computed in bfloat16; in bfloat16 the rows are rounded.
    tolerance = 1e-5 if dtype == torch.float32 and kind != "int8" else 2e-2
    assert (logits(model) - before).abs().max() <= tolerance * before.abs().max()
    for name, (indices, trained) in rows.items():
        module = model.get_submodule(name)
        if trained is None:
            assert quantised.is_packed(module.weight)
            continue
        expected = frozen[name].clone()
        expected[indices] = trained.detach().to(dtype)
        assert type(module) is nn.Linear
        assert torch.equal(module.weight, expected)

    model.save_pretrained(tmp_path / "trained")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").train()
    for name, (_, trained) in rows.items():
        assert quantised.is_packed(loaded.get_submodule(name).weight) == (trained is None)
    assert quantised.is_packed(loaded.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(logits(loaded), logits(model))

    if dtype != torch.float32:  # bitsandbytes leaves the biases in float32, in which the inputs are not
        return
    floats = model.dequantize(dtype=dtype)
    floats.save_pretrained(tmp_path / "floats")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "floats")
    assert not getattr(loaded, "is_quantized", False)
    assert torch.equal(logits(loaded), logits(floats))


def test_dequantising_first_keeps_the_rows(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    alps.restrict(model, heads_of(model))
    train(model)
    before = logits(model)
    model.dequantize(dtype=torch.float32)
    assert (logits(model) - before).abs().max() < 1e-5
    with pytest.raises(alps.ModelError, match=r"call alps\.release"):
        model.state_dict()
    alps.release(model)
    assert (logits(model) - before).abs().max() < 1e-5
    assert {type(it) for name, it in model.named_modules() if name.endswith("_proj")} == {nn.Linear}


def test_a_model_that_was_evaluated_trains(bases: dict[str, Path]) -> None:
    """On some CPUs, bitsandbytes packs weights anew for evaluation, and then computes no gradient of inputs."""
    fresh, evaluated = load(bases["llama"]), load(bases["llama"])
    logits(evaluated.eval())
    evaluated.train()
    for model in (fresh, evaluated):
        alps.restrict(model, heads_of(model), others="freeze")
        loss_of(model).backward()
    with_adapter = load(bases["llama"])
    logits(with_adapter.eval())
    with_adapter = get_peft_model(with_adapter.train(), alps.AlpsConfig(heads=heads_of(with_adapter)))
    loss_of(with_adapter).backward()
    gradients = [[it.grad for it in trainable(model)] for model in (fresh, evaluated, with_adapter)]
    for one, *rest in zip(*gradients, strict=True):
        # Such CPUs have rounded the scales to bfloat16.
        assert all((one - it).abs().max() < 2e-2 * one.abs().max() for it in rest)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_adapter_over_a_base_that_was_evaluated(kind: str, bases: dict[str, Path]) -> None:
    model = load(bases["llama"], kind).eval()
    before = logits(model)
    model = get_peft_model(model, alps.AlpsConfig(heads=heads_of(model)))
    assert (logits(model) - before).abs().max() < 2e-2 * before.abs().max()


def test_checkpointing_compiling_copies_and_autocast(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    alps.restrict(model, heads_of(model), others="freeze")
    projection: Any = next(it for _, it in packed(model))
    inputs = torch.randn(3, SIZES["hidden_size"], requires_grad=True)

    def gradients(function: Any) -> list[Tensor]:
        found = torch.autograd.grad(function(inputs).square().sum(), [inputs, projection.rows])
        return list(found)

    expected = gradients(projection)
    for reentrant in (False, True):
        inputs.grad = None
        checkpoint(projection, inputs, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(inputs.grad, expected[0])  # type: ignore[arg-type]
        assert torch.equal(projection.rows.grad, expected[1])
        projection.zero_grad()
    torch._dynamo.reset()
    for one, other in zip(gradients(torch.compile(projection, backend="aot_eager")), expected, strict=True):
        torch.testing.assert_close(one, other)
    copied = copy.deepcopy(projection)
    with torch.no_grad():
        projection.rows += 1
        assert not torch.equal(copied(inputs), projection(inputs))
    with torch.autocast("cpu", torch.bfloat16):
        assert projection(inputs).dtype in (torch.bfloat16, torch.float32)
    assert projection.half().rows.dtype == torch.float32


def test_gradient_checkpointing_of_a_model(bases: dict[str, Path]) -> None:
    found = []
    for checkpointing in (False, True):
        model = load(bases["llama"])
        alps.restrict(model, heads_of(model), others="freeze")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss_of(model).backward()
        found.append([it.grad for it in trainable(model)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_hooks_of_accelerate_are_kept(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    module = model.model.layers[0].self_attn.q_proj
    add_hook_to_module(module, hook := AlignDevicesHook("cpu", io_same_device=True))
    before = logits(model)
    alps.restrict(model, heads_of(model))
    assert (logits(model) - before).abs().max() < 1e-5
    alps.release(model)
    assert model.model.layers[0].self_attn.q_proj._hf_hook is hook
    assert (logits(model) - before).abs().max() < 1e-5


def test_columns_of_packed_weights_are_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n_embd": 128, "n_inner": 128, "n_layer": 1, "n_head": 4, "vocab_size": 100}
    plain: Model = AutoModelForCausalLM.from_config(GPT2Config(**sizes))
    heads = alps.HeadSet.from_pairs([(0, 1)], attention.find(plain).geometry)
    plain.save_pretrained(tmp_path)
    model = load(tmp_path)
    modules = [(name, id(it)) for name, it in model.named_modules()]
    with pytest.raises(alps.ModelError, match=r"c_attn"):
        alps.restrict(model, heads)
    assert [(name, id(it)) for name, it in model.named_modules()] == modules


DDP = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import alps
from test_training_packed import SIZES, heads_of, load, loss_of, tokens, trainable

dist.init_process_group("gloo")
rows = []
for shared in (False, True):
    model = load(Path(sys.argv[1]))
    alps.restrict(model, heads_of(model), others="freeze")
    run = DistributedDataParallel(model) if shared else model
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    for step in range(3):
        batch = tokens(step).remainder(SIZES["vocab_size"])
        batch = batch.chunk(2)[dist.get_rank()] if shared else batch
        run(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    rows.append([it.detach().clone() for it in trainable(model)])
assert all((one - other).abs().max() < 1e-5 for one, other in zip(*rows))
try:
    run.state_dict()
except alps.ModelError:
    alps.release(run)
    assert run.state_dict()
    dist.barrier()
    dist.destroy_process_group()
else:
    sys.exit("a state was saved")
"""


def test_two_processes_train_the_same_as_one(bases: dict[str, Path], tmp_path: Path) -> None:
    (script := tmp_path / "train.py").write_text(DDP)
    launcher = [
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), str(bases["qwen2"])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_generation(bases: dict[str, Path]) -> None:
    model = load(bases["llama"])
    alps.restrict(model, heads_of(model))
    train(model)
    prompt = tokens(1, batch=1, length=4).remainder(SIZES["vocab_size"])
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    found = model.generate(prompt, **settings)
    alps.release(model)
    assert torch.equal(found, model.generate(prompt, **settings))


def test_the_trainer_refuses_a_packed_model_without_an_adapter(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = load(bases["llama"])
    alps.restrict(model, heads_of(model))
    with pytest.raises(ValueError, match="You cannot perform fine-tuning on purely quantized models"):
        run_trainer(model, tmp_path, steps=1)


def test_what_was_frozen_is_as_before_after_release(bases: dict[str, Path]) -> None:
    model = load(bases["qwen2"])
    before = {name: it.requires_grad for name, it in model.named_parameters()}
    alps.restrict(model, heads_of(model), others="freeze")
    alps.release(model)
    assert {name: it.requires_grad for name, it in model.named_parameters()} == before
    with pytest.raises(alps.ArgumentError, match="the model is not restricted"):
        alps.release(model)
