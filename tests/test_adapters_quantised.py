"""A scan of an adapter of a quantised base gives the same scores as over the dequantised weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import alps
from support.adapters import assert_same, edit, merge, save_adapter
from support.checkpoints import Tensors, write
from support.quantisers import QUANTISERS

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT asks transformers
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]

TARGETS = ["q_proj", "k_proj", "v_proj"]
METHODS = ["bitsandbytes nf4", "bitsandbytes nf4, nested", "bitsandbytes int8", "fp8 rows, FBGEMM"]
METHODS += ["gptq int4, shuffled", "awq"]  # a head is columns of these
if sys.version_info >= (3, 11):
    METHODS += ["packed int4", "int8 rows"]
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {  # PEFT writes into them
    "LoRA": partial(peft.LoraConfig, r=4, lora_alpha=8, target_modules=TARGETS),
    "LoRA of a layer": partial(peft.LoraConfig, r=4, target_modules=["q_proj"], layers_to_transform=[1]),
    "DoRA": partial(peft.LoraConfig, r=4, target_modules=TARGETS, use_dora=True),
    "LoRA and a whole module": partial(
        peft.LoraConfig, r=4, target_modules=["q_proj"], modules_to_save=["k_proj"]
    ),
    "IA3": partial(peft.IA3Config, target_modules=TARGETS, feedforward_modules=["q_proj"]),
}


def model() -> Any:
    """A Llama whose rows are whole blocks of every quantiser."""
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=128, intermediate_size=64, initializer_range=0.3, **sizes
    )
    return transformers.LlamaForCausalLM(config)


def load(folder: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


class Bases:
    """A quantised base, and the weights that the quantiser says it stands for, as a plain one."""

    def __init__(self, folder: Path, method: str) -> None:
        created = model()
        stored: Tensors = {}
        plain: Tensors = {}
        for key, weight in created.state_dict().items():
            is_quantised = key.endswith(tuple(f"{target}.weight" for target in TARGETS))
            parts, plain[key] = (
                QUANTISERS[method].quantise(weight) if is_quantised else ({"weight": weight}, weight)
            )
            stored |= {f"{key.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
        document = created.config.to_dict() | {"dtype": "float32"}
        self.plain = write(folder / "plain", document, plain)
        document["quantization_config"] = QUANTISERS[method].config
        self.quantised = write(folder / "quantised", document, stored)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_peft(tmp_path: Path, method: str, kind: str) -> None:
    bases = Bases(tmp_path, method)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    save_adapter(load(bases.plain), KINDS[kind](), adapter)
    merge(load(bases.plain), adapter, merged)
    found = alps.scan(bases.quantised, adapter)
    assert_same(found, alps.scan(bases.plain, merged))
    moved = (found["delta_norm"] > 0).all(axis=1).tolist()
    assert moved == [kind != "LoRA of a layer", True]
    assert found.provenance["tuned_adapter_over"] == str(bases.quantised)
    assert found.provenance["tuned_quantisation"] == QUANTISERS[method].scheme


def test_an_adapter_trained_over_bitsandbytes(tmp_path: Path) -> None:
    """QLoRA, as it is saved: the base is in four bits when the adapter is made."""
    model().save_pretrained(tmp_path / "base")
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    loaded: Any = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=settings, dtype=torch.float32
    )
    loaded.save_pretrained(tmp_path / "quantised")
    save_adapter(loaded, KINDS["LoRA"](), tmp_path / "adapter")
    again: Any = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=settings, dtype=torch.float32
    )
    again.dequantize(dtype=torch.float32).save_pretrained(tmp_path / "plain")
    merge(load(tmp_path / "plain"), tmp_path / "adapter", tmp_path / "merged")
    found = alps.scan(tmp_path / "quantised", tmp_path / "adapter")
    assert_same(found, alps.scan(tmp_path / "plain", tmp_path / "merged"))


def test_rows_of_this_project(tmp_path: Path) -> None:
    import alps.training  # makes the kind known to PEFT

    bases = Bases(tmp_path, "bitsandbytes nf4")
    heads = alps.HeadSet.from_pairs([(0, 1), (1, 3)], alps.geometry(bases.quantised))
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    save_adapter(load(bases.plain), alps.AlpsConfig(heads=heads), adapter)
    merge(load(bases.plain), adapter, merged)
    assert_same(alps.scan(bases.quantised, adapter), alps.scan(bases.plain, merged))


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    return Bases(tmp_path, "bitsandbytes nf4")


@pytest.fixture
def adapter(tmp_path: Path, bases: Bases) -> Path:
    save_adapter(load(bases.plain), KINDS["LoRA"](), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_base_that_is_not_read(bases: Bases, adapter: Path) -> None:
    edit(bases.quantised / "config.json", {"quantization_config": {"quant_method": "aqlm"}})
    with pytest.raises(alps.ModelError, match=r"_proj` is quantised by `aqlm`.*dequantised first"):
        alps.scan(bases.plain, adapter, adapter_base=bases.quantised)


def test_a_base_of_another_shape(bases: Bases, adapter: Path) -> None:
    """The shape is that of the weights, not of the codes that are stored."""
    path = adapter / "adapter_model.safetensors"
    tensors = {
        name: it[:, :64].contiguous() if "lora_A" in name else it for name, it in load_file(path).items()
    }
    save_file(tensors, path)
    with pytest.raises(alps.CheckpointError, match=r"lora_A.*\[4, 128\].*\[4, 64\]"):
        alps.scan(bases.quantised, adapter)
