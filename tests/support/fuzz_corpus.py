"""Writes the seeds of the fuzz targets, `fuzz/corpus/`: small inputs of every kind that the core reads.

Run as `PYTHONPATH=tests python -m support.fuzz_corpus`. A seed is named by what it is; inputs that once failed are beside the
seeds and are kept.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import save

import alps.training  # makes the adapters of this project known to PEFT
from support.adapters import save_adapter
from support.checkpoints import DTYPES, Shape, random_weights, write_pair
from support.quantisers import QUANTISERS
from support.tiny_models import tiny

SHAPE = Shape(layers=2, query_heads=4, key_value_heads=2, head_size=2, hidden_size=6)
CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"
LARGEST = 16_000
"""The longest seed, in bytes."""

MODEL_TYPES = {
    "decoder": "llama gpt2 gpt_neox bloom falcon phi3 codegen qwen3_next gemma3n_text deepseek_v3 longcat_flash zamba2 xlm",
    "encoder": "bert albert convbert lxmert xlnet squeezebert mobilebert t5",
    "vision": "vit hiera mllama_vision_model mobilevit llava",
    "audio": "whisper",
    "cross": "bart",
}
"""Model types of transformers whose layouts differ, by the component to look for."""

COMPONENTS = ["decoder", "encoder", "vision", "audio", "cross"]
"""In the order of the core; `fuzz/src/geometry.rs` counts them by a digit."""


def compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def header_of(weights: bytes) -> bytes:
    """Returns the header of a safetensors file."""
    return weights[8 : 8 + int.from_bytes(weights[:8], "little")].rstrip()


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def headers() -> Iterator[tuple[str, bytes]]:
    def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    for dtype in DTYPES:
        yield (
            dtype,
            save({"a": torch.ones(2, 3, dtype=DTYPES[dtype]), "b": torch.ones(0, dtype=DTYPES[dtype])}),
        )
    for dtype in ["F4", "F6_E2M3", "F8_E8M0", "C64", "BOOL"]:
        yield dtype, file_of(compact({"a": entry(dtype, [8], 0, 8)}), bytes(8))
    yield "metadata", save({"a": torch.ones(1)}, {"format": "pt"})
    yield "wrapped", save({"_orig_mod.a": torch.ones(1), "module.b": torch.ones(1)})
    yield "scalar", save({"a": torch.tensor(1.0)})
    yield "empty", file_of(b"{}")
    yield "twice", file_of(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":1}', b"0")
    yield "gap", file_of(compact({"a": entry("U8", [1], 1, 2)}), b"00")
    yield "overlap", file_of(compact({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}), b"000")
    yield "huge shape", file_of(compact({"a": entry("F64", [2**40, 2**40], 0, 8)}), bytes(8))
    yield "unknown key", file_of(compact({"a": entry("U8", [1], 0, 1) | {"order": "C"}}), b"0")
    yield "long claim", (1 << 40).to_bytes(8, "little") + b"{}"
    yield "pickle", b"PK\x03\x04" + bytes(12)
    yield "git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def indices() -> Iterator[tuple[str, bytes]]:
    shards = {"x": "a.safetensors", "y": "b.safetensors", "z": "./c/d.safetensors"}
    yield "three shards", compact({"metadata": {"total_size": 3}, "weight_map": shards})
    yield "one shard", compact({"weight_map": {"x": "a.safetensors"}})
    yield "another tensor", compact({"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}})
    yield "outside", compact({"weight_map": {"x": "../a.safetensors"}})
    yield "pickled", compact({"weight_map": {"x": "a.bin"}})
    yield "twice", b'{"weight_map":{"x":"a.safetensors","x":"b.safetensors"}}'
    yield "empty", b'{"weight_map":{}}'


def known_keys() -> set[str]:
    """The keys of configurations that the core reads, and a few other words."""
    files = (path for path in (CORPUS.parents[1] / "rust" / "attention").rglob("*") if path.is_file())
    return {key for path in files for key in re.findall(r'"([A-Za-z0-9_]+)"', path.read_text())}


def geometries() -> Iterator[tuple[str, bytes]]:
    """Only with what decides where attention is: the fuzzer gives less than half as many long inputs a second."""
    known = known_keys()

    def trimmed(config: dict[str, Any]) -> dict[str, Any]:
        return {
            key: trimmed(value) if isinstance(value, dict) else value
            for key, value in config.items()
            if key in known
        }

    for component, model_types in MODEL_TYPES.items():
        for model_type in model_types.split():
            model, config = tiny(model_type)
            shapes = {
                name: list(tensor.shape)
                for name, tensor in model.state_dict().items()
                if tensor.ndim > 1 and "att" in name.lower()
            }
            digit = str(COMPONENTS.index(component)).encode()
            yield model_type, digit + compact(trimmed(config.to_diff_dict())) + b"\0" + compact(shapes)
    yield "not finite", b'0{"model_type":"llama","a":NaN,"b":[-Infinity,"Infinity"]}\0{}'


def adapters() -> Iterator[tuple[str, bytes, bytes]]:
    """Yields the configuration and the weights of adapters of the base in `fuzz/src/adapter.rs`."""
    sizes = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=2,
    )
    targets = ["q_proj", "v_proj"]
    with tempfile.TemporaryDirectory() as name:
        transformers.LlamaForCausalLM(sizes).save_pretrained(name)
        heads = alps.HeadSet.from_pairs([(0, 1)], alps.geometry(name))
    configs: dict[str, peft.PeftConfig] = {
        "lora": peft.LoraConfig(r=2, target_modules=targets),
        "rslora": peft.LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=targets),
        "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=targets),
        "patterns": peft.LoraConfig(
            r=2,
            target_modules=targets,
            rank_pattern={"q_proj": 1},
            alpha_pattern={"^model.layers.1.self_attn.v_proj": 3},
        ),
        "saved": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["v_proj"]),
        "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=targets),
        "lokr": peft.LoKrConfig(
            r=2, alpha=3, target_modules=targets, decompose_both=True, decompose_factor=2
        ),
        "ia3": peft.IA3Config(target_modules=targets, feedforward_modules=targets[:1]),
        "alps": alps.AlpsConfig(heads=heads),
    }
    for kind, config in configs.items():
        with tempfile.TemporaryDirectory() as name:
            save_adapter(transformers.LlamaForCausalLM(sizes), config, Path(name))
            document = json.loads((Path(name) / "adapter_config.json").read_text())
            set_keys = {
                key: value for key, value in document.items() if value not in (None, False, [], {}, "")
            }
            yield kind, compact(set_keys), (Path(name) / "adapter_model.safetensors").read_bytes()


def quantised() -> Iterator[tuple[str, bytes]]:
    weight = torch.linspace(-0.5, 0.5, 128 * 128).reshape(128, 128)
    for name, quantiser in QUANTISERS.items():
        stored, _ = quantiser.quantise(weight)
        tensors = {
            f"model.layers.0.self_attn.q_proj.{part}": tensor.contiguous() for part, tensor in stored.items()
        }
        config = compact({"quantization_config": quantiser.config})
        # Without its data, of which the target has its own.
        yield name, config + b"\0" + header_of(save(tensors))


FAMILIES = {"llama": 0, "gpt2": 1, "gpt_neox": 2}
STORED = {"f16": 0, "bf16": 1, "f32": 2, "f64": 3}


def choice(number: int, count: int) -> bytes:
    """The bytes from which `arbitrary` chooses this variant among `count`."""
    return struct.pack("<I", -(-(number << 32) // count))


def scans() -> Iterator[tuple[str, bytes]]:
    def plan(
        family: str,
        sizes: tuple[int, int, int, int, int],
        dtypes: tuple[str, str],
        *,
        raw: bool = False,
        alike: bool = False,
        sharded: tuple[bool, bool] = (False, False),
        product: bool = False,
        in_order: bool = False,
        temperature: int = 0,
        damage: bytes = b"",
    ) -> bytes:
        layers, groups, per_group, head_size, hidden = (size - 1 for size in sizes)
        return b"".join(
            [
                choice(FAMILIES[family], 3),
                bytes([layers, groups, per_group, head_size, hidden]),
                *(choice(STORED[dtype], 5) for dtype in dtypes),
                bytes([raw, raw, alike, *sharded, product, 255 * in_order]),
                struct.pack("<bHH", temperature, 64, 256),
                bytes([bool(damage)]) + damage + bytes(1),
                bytes((at * at * 7 + at) % 251 for at in range(300)),
            ]
        )

    for family in FAMILIES:
        for dtype in STORED:
            yield f"{family} {dtype}", plan(family, (2, 2, 2, 3, 5), (dtype, dtype), alike=dtype == "f16")
    yield "two formats", plan("llama", (1, 2, 1, 2, 66), ("f64", "bf16"))
    yield "sharded", plan("llama", (3, 1, 2, 1, 3), ("bf16", "bf16"), sharded=(True, False))
    yield "sorted", plan("llama", (1, 1, 2, 2, 5), ("bf16", "f32"), in_order=True)
    yield "product", plan("llama", (2, 1, 2, 2, 4), ("bf16", "f32"), product=True)
    yield "any bytes", plan("llama", (1, 2, 2, 4, 4), ("f16", "f16"), raw=True)
    yield "hot", plan("llama", (1, 1, 2, 2, 9), ("f32", "f32"), temperature=5)
    yield "cold", plan("llama", (1, 1, 2, 2, 9), ("f32", "f32"), temperature=-6)
    damages = {
        "config": struct.pack("<Bb", 1, -1),
        "config byte": struct.pack("<HB", 40, 0x5B),
        "header byte": struct.pack("<HB", 30, 0x39),
        "shorter": b"\x01",
        "renamed": b"\x01",
        "reshaped": b"\x01",
    }
    for number, (name, fields) in enumerate(damages.items()):
        damage = choice(number, len(damages)) + fields
        yield f"damaged {name}", plan("llama", (2, 2, 1, 2, 4), ("bf16", "bf16"), damage=damage)


def selections() -> Iterator[tuple[str, bytes]]:
    def layer(groups: int, per_group: int, parameters: int = 64) -> bytes:
        return bytes([1, groups, per_group, 0]) + struct.pack("<QQB", parameters, 2 * parameters, 0)

    def plan(layers: list[bytes], percent: int, budget: int, coarse: bool) -> bytes:
        numbers = struct.pack("<dBBQQ", 0.5, 1, percent, budget, 7)
        return (
            b"".join(layers) + bytes(4 - len(layers)) + numbers + bytes([coarse, 0]) + bytes(range(7, 250, 3))
        )

    yield "even", plan([layer(2, 2)] * 3, 10, 500, coarse=False)
    yield "ties", plan([layer(2, 4)] * 4, 33, 1000, coarse=True)
    yield "uneven", plan([layer(1, 3), layer(8, 1), layer(2, 2, 1 << 62)], 50, 1 << 40, coarse=True)
    yield "no layer", plan([], 0, 0, coarse=True)


def saved_files() -> Iterator[tuple[str, str, bytes]]:
    """Yields the target, the name and the text, or the header, of files that alps saves."""
    weights = random_weights(SHAPE, seed=1)
    tuned = {name: tensor * 1.01 for name, tensor in weights.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, other = write_pair(folder, SHAPE.config(), weights, tuned)
        for file in (base / "model.safetensors", other / "model.safetensors"):
            os.utime(file, (0, 0))  # the time is in the part
        scores = alps.scan(base, other)
        scores.save(folder / "scores")
        alps.scan(base, other, resume=folder / "part")
        found = [
            ("scores", "all", header_of((folder / "scores").read_bytes())),
            ("heads", "some", scores.select(ratio=0.3).to_json().encode()),
            ("heads", "none", scores.select(ratio=0).to_json().encode()),
            ("part", "whole", header_of((folder / "part").read_bytes())),
        ]
        for target, name, content in found:
            yield target, name, content.replace(os.fsencode(folder), b"models")


def targets() -> Mapping[str, list[tuple[str, bytes]]]:
    found, saved = list(adapters()), list(saved_files())
    return {
        "header": list(headers()),
        "index": list(indices()),
        "geometry": list(geometries()),
        "adapter_config": [(kind, config) for kind, config, _ in found],
        "adapter": [(kind, config + b"\0" + header_of(weights)) for kind, config, weights in found],
        "quantised": list(quantised()),
        "scan": list(scans()),
        "select": list(selections()),
        **{
            of: [(name, content) for target, name, content in saved if target == of]
            for of in ("heads", "scores", "part")
        },
    }


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    for target, seeds in targets().items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, content in seeds:
            if len(content) <= LARGEST:
                (CORPUS / target / name.replace(" ", "-").replace(",", "").lower()).write_bytes(content)


if __name__ == "__main__":
    main()
