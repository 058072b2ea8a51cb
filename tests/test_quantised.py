"""Quantised checkpoints have the scores of the weights that their quantiser says they stand for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import alps
from alps.cli import app
from support.checkpoints import Shape, Tensors, name, random_weights, write
from support.quantisers import QUANTISERS, Quantiser, fp8_rows
from support.servers import serve
from support.tiny_models import tiny

SHAPE = Shape(layers=2, query_heads=4, key_value_heads=2, head_size=48, hidden_size=320)
"""Queries of 192 rows and 320 columns: neither is a whole number of blocks of 128."""


_PROJECTIONS = r"\.(query|key|value|q_a_proj|q_b_proj|kv_b_proj|query_key_value|qkv_proj)\.weight$"


def config(quantiser: Quantiser) -> dict[str, Any]:
    return SHAPE.config() | {"quantization_config": quantiser.config}


def quantise(weights: Tensors, quantiser: Quantiser) -> tuple[Tensors, Tensors]:
    """The stored tensors, and the weights that they stand for."""
    stored: Tensors = {}
    expected: Tensors = {}
    for key, weight in weights.items():
        parts, expected[key] = quantiser.quantise(weight.float())
        stored |= {f"{key.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    return stored, expected


@pytest.fixture(params=QUANTISERS)
def quantiser(request: pytest.FixtureRequest) -> Quantiser:
    return QUANTISERS[request.param]


def test_scores_are_those_of_the_dequantised_weights(tmp_path: Path, quantiser: Quantiser) -> None:
    base = write(tmp_path / "base", SHAPE.config(), random_weights(SHAPE, seed=1))
    stored, expected = quantise(random_weights(SHAPE, seed=2), quantiser)
    quantised = write(tmp_path / "quantised", config(quantiser), stored)
    plain = write(tmp_path / "plain", SHAPE.config(), expected)

    same = alps.scan(plain, quantised)
    if quantiser.exact:
        assert not any(same[statistic].any() for statistic in ("wasserstein", "kl", "max_delta", "changed"))
    else:
        assert same["relative_delta"].max() < 1e-7

    scores = alps.scan(base, quantised)
    for statistic, values in alps.scan(base, plain).items():
        np.testing.assert_allclose(scores[statistic], values, rtol=0 if quantiser.exact else 1e-5)
    assert scores.provenance["tuned_quantisation"] == quantiser.scheme
    assert "base_quantisation" not in scores.provenance

    reverse = alps.scan(quantised, base, form="product")
    for statistic, values in alps.scan(plain, base, form="product").items():
        np.testing.assert_allclose(reverse[statistic], values, rtol=0 if quantiser.exact else 1e-5)
    assert reverse.provenance["base_quantisation"] == quantiser.scheme


def test_exactly_the_heads_that_were_changed_have_moved(tmp_path: Path, quantiser: Quantiser) -> None:
    weights = random_weights(SHAPE, seed=1)
    before = write(tmp_path / "before", config(quantiser), quantise(weights, quantiser)[0])
    for key in (name(0, "q"), name(1, "v")):
        weights[key][SHAPE.head_size : 2 * SHAPE.head_size] *= -1  # scales stay as they are
    after = write(tmp_path / "after", config(quantiser), quantise(weights, quantiser)[0])
    moved = alps.scan(before, after)["wasserstein"] > 0
    np.testing.assert_array_equal(moved, [[False, True, False, False], [False, False, True, True]])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_fp8_code_decodes_as_in_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    codes = codes[codes.float().isfinite()]
    shape = Shape(query_heads=1, key_value_heads=1, head_size=1, hidden_size=len(codes))
    stored = {name(0, matrix): codes.reshape(1, -1).clone() for matrix in "qkv"}
    plain = write(tmp_path / "plain", shape.config(), {key: codes.float() for key, codes in stored.items()})
    scales = {f"{key}_scale": torch.ones(1) for key in stored}
    quantised = write(
        tmp_path / "quantised",
        shape.config() | {"quantization_config": {"quant_method": "fp8"}},
        stored | scales,
    )
    scores = alps.scan(plain, quantised)
    assert scores["changed"].item() == scores["max_delta"].item() == 0


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4 nested"])
def test_what_transformers_saves_of_a_model_loaded_by_bitsandbytes(tmp_path: Path, kind: str) -> None:
    # bitsandbytes' kernel for CPUs needs rows that are whole blocks of 64.
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 128}
    created = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=32, intermediate_size=64, **sizes)
    )
    created.save_pretrained(tmp_path / "base")
    settings: dict[str, Any] = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True}
    if kind != "int8":
        settings |= {"bnb_4bit_quant_type": kind[:3], "bnb_4bit_use_double_quant": "nested" in kind}
    model = type(created).from_pretrained(
        tmp_path / "base",
        quantization_config=transformers.BitsAndBytesConfig(**settings),
        dtype=torch.float32,
    )
    model.save_pretrained(tmp_path / "quantised")
    model.dequantize(dtype=torch.float32).save_pretrained(tmp_path / "plain")
    scores = alps.scan(tmp_path / "plain", tmp_path / "quantised")
    assert scores["relative_delta"].max() < 1e-6
    assert scores.provenance["tuned_quantisation"] == f"bitsandbytes {kind.split()[0]}"
    assert alps.scan(tmp_path / "base", tmp_path / "quantised")["relative_delta"].min() > 1e-3


def test_transformers_dequantises_fp8_to_the_same_weights(tmp_path: Path) -> None:
    created, config = tiny("llama")
    for parameter in created.parameters():
        parameter.data = parameter.to(torch.bfloat16).float()
    created.save_pretrained(tmp_path / "base")
    stored: Tensors = {}
    for key, weight in created.state_dict().items():
        is_quantised = "self_attn" in key and weight.dim() == 2
        parts = QUANTISERS["fp8 small blocks"].quantise(weight)[0] if is_quantised else {"weight": weight}
        stored |= {f"{key.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    del stored["lm_head.weight"]
    document = config.to_dict() | {"dtype": "float32"}
    document["quantization_config"] = QUANTISERS["fp8 small blocks"].config | {
        "modules_to_not_convert": ["mlp"]
    }
    quantised = write(tmp_path / "quantised", document, stored)
    settings = transformers.FineGrainedFP8Config(dequantize=True)
    model = type(created).from_pretrained(quantised, quantization_config=settings, dtype=torch.float32)
    model.config.quantization_config = None
    model.save_pretrained(tmp_path / "plain")
    assert alps.scan(tmp_path / "plain", quantised)["relative_delta"].max() < 1e-6


@pytest.mark.parametrize("model_type", ["bert", "deepseek_v3", "gpt_neox", "phi3", "falcon"])
@pytest.mark.parametrize("by", ["fp8 small blocks", "bitsandbytes int8"])
def test_every_layout_of_linear_layers(tmp_path: Path, model_type: str, by: str) -> None:
    created, _ = tiny(model_type)
    created.save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    attention = {key: weights.pop(key) for key in list(weights) if re.search(_PROJECTIONS, key)}
    stored, expected = quantise(attention, QUANTISERS[by])
    document = json.loads((tmp_path / "base" / "config.json").read_text())
    plain = write(tmp_path / "plain", document, weights | expected)
    document["quantization_config"] = QUANTISERS[by].config
    quantised = write(tmp_path / "quantised", document, weights | stored)
    assert alps.scan(plain, quantised)["relative_delta"].max() < 1e-7
    assert alps.inspect(quantised).quantisation == QUANTISERS[by].scheme
    assert {module.dtype for module in alps.inspect(quantised).modules} == {"F32"}


def test_some_modules_may_be_unquantised(tmp_path: Path) -> None:
    weights = random_weights(SHAPE, seed=1)
    stored, expected = quantise({name(1, "k"): weights[name(1, "k")]}, QUANTISERS["fp8 rows, FBGEMM"])
    others = {key: weight.to(torch.bfloat16) for key, weight in weights.items() if key != name(1, "k")}
    quantised = write(tmp_path / "quantised", config(QUANTISERS["fp8 rows, FBGEMM"]), others | stored)
    plain = write(tmp_path / "plain", SHAPE.config(), others | expected)
    scores = alps.scan(plain, quantised)
    assert scores["max_delta"].max() == 0
    assert scores.provenance["tuned_quantisation"] == "FP8 (E4M3)"
    plain_modules = write(tmp_path / "all plain", config(QUANTISERS["fp8 rows, FBGEMM"]), weights)
    assert "tuned_quantisation" not in alps.scan(plain, plain_modules).provenance


@pytest.mark.skipif(sys.version_info < (3, 11), reason="compressed-tensors needs Python 3.11")
def test_several_formats_in_one_model(tmp_path: Path) -> None:
    weights = random_weights(SHAPE, seed=1)
    floats, integers = QUANTISERS["fp8 rows, compressed"], QUANTISERS["packed int4"]
    groups = [one.config["config_groups"]["group_0"] for one in (floats, integers)]
    both = floats.config | {"config_groups": dict(zip("ab", groups, strict=True))}
    stored: Tensors = {}
    expected: Tensors = {}
    for key, weight in weights.items():
        one, of_one = quantise({key: weight}, integers if ".q_proj" in key else floats)
        stored |= one
        expected |= of_one
    quantised = write(tmp_path / "quantised", SHAPE.config() | {"quantization_config": both}, stored)
    plain = write(tmp_path / "plain", SHAPE.config(), expected)
    scores = alps.scan(plain, quantised)
    assert scores["max_delta"].max() == 0
    assert scores.provenance["tuned_quantisation"] == "FP8 (E4M3); compressed-tensors int4"


def test_the_command_warns_that_scores_include_rounding(tmp_path: Path) -> None:
    base = write(tmp_path / "base", SHAPE.config(), random_weights(SHAPE, seed=1))
    nf4 = QUANTISERS["bitsandbytes nf4"]
    quantised = write(tmp_path / "quantised", config(nf4), quantise(random_weights(SHAPE, seed=1), nf4)[0])
    scores = tmp_path / "scores.safetensors"
    scanned = CliRunner().invoke(app, ["scan", str(base), str(quantised), "--scores", str(scores)])
    note = "The tuned weights are quantised (bitsandbytes nf4): what that rounded is part of every score."
    assert note in " ".join(scanned.output.split())
    assert "The base weights" not in scanned.output
    shown = CliRunner().invoke(app, ["show", str(scores)])
    assert note in " ".join(shown.output.split())
    assert "quantised: bitsandbytes nf4" in CliRunner().invoke(app, ["inspect", str(quantised)]).output
    inspected = alps.inspect(quantised)
    assert inspected.quantisation == "bitsandbytes nf4"
    assert {module.dtype for module in inspected.modules} == {"F32"}
    entries = 2 * (192 + 96 + 96) * 320
    assert inspected.bytes == entries / 2 + entries / 64 * 4  # codes, and a scale for each block
    assert alps.inspect(base).quantisation is None
    document = json.loads(CliRunner().invoke(app, ["show", str(scores), "--json"]).output)
    assert document["provenance"]["tuned_quantisation"] == "bitsandbytes nf4"


def broken(
    tmp_path: Path, change: dict[str, torch.Tensor | None], method: dict[str, Any] | None = None
) -> Path:
    """Rows of FP8 with some tensors of one module replaced or, for None, removed."""
    rows = Quantiser(fp8_rows, method or {"quant_method": "fbgemm_fp8"}, "FP8 (E4M3)")
    stored, _ = quantise(random_weights(SHAPE, seed=1), rows)
    for part, tensor in change.items():
        key = name(1, "k").removesuffix("weight") + part
        if tensor is None:
            del stored[key]
        else:
            stored[key] = tensor
    return write(tmp_path / "broken", config(rows), stored)


REFUSED: dict[str, tuple[dict[str, torch.Tensor | None], dict[str, Any] | None, type[Exception], str]] = {
    "scales of another shape": (
        {"weight_scale": torch.ones(7, 1)},
        None,
        alps.CheckpointError,
        r"model\.safetensors: tensor `model\.layers\.1\.self_attn\.k_proj\.weight_scale` should, .*\[96, 1\].*\[7, 1\]",
    ),
    "a scale that is no number": (
        {"weight_scale": torch.full((96, 1), torch.nan)},
        None,
        alps.CheckpointError,
        r"model\.safetensors: tensor `.*k_proj\.weight_scale` holds NaN at entry 0; every scale has to be finite",
    ),
    "a code that is no number": (
        {"weight": torch.full((96, 320), torch.nan).to(torch.float8_e4m3fn)},
        None,
        alps.WeightsError,
        r"model\.safetensors: tensor model.*k_proj\.weight holds NaN at \[0, 0\]",
    ),
    "no scale": (
        {"weight_scale": None},
        None,
        alps.ModelError,
        "the module `model.*k_proj` is stored as F8_E4M3 without",
    ),
    "another method": (
        {},
        {"quant_method": "aqlm"},
        alps.ModelError,
        "is quantised by `aqlm`.*dequantised first",
    ),
    "a configuration of something else": (
        {},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        alps.ModelError,
        r"holds FP8 \(E4M3\), which quantization_config in config.json \(bitsandbytes\) does not describe",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inconsistent_quantised_tensors_are_refused(tmp_path: Path, case: str) -> None:
    change, method, error, message = REFUSED[case]
    base = write(tmp_path / "base", SHAPE.config(), random_weights(SHAPE, seed=1))
    path = broken(tmp_path, change, method)
    for pair in ((base, path), (path, base)):
        with pytest.raises(error, match=message):
            alps.scan(*pair)


def test_a_tensor_that_is_not_read_may_be_broken(tmp_path: Path) -> None:
    stored, expected = quantise(random_weights(SHAPE, seed=1), QUANTISERS["awq"])
    stored["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(1, dtype=torch.int32)
    quantised = write(tmp_path / "quantised", config(QUANTISERS["awq"]), stored)
    plain = write(tmp_path / "plain", SHAPE.config(), expected)
    assert alps.scan(plain, quantised)["max_delta"].max() == 0


def write_quantised(folder: Path, quantiser: Quantiser) -> tuple[Path, Path]:
    """Writes a quantised checkpoint, and the weights that it stands for."""
    stored, expected = quantise(random_weights(SHAPE, seed=2), quantiser)
    return write(folder / "quantised", config(quantiser), stored), write(
        folder / "plain", SHAPE.config(), expected
    )


def test_the_bytes_of_a_server_give_the_same_scores(tmp_path: Path, quantiser: Quantiser) -> None:
    quantised, plain = write_quantised(tmp_path, quantiser)
    with serve(tmp_path) as server:
        assert alps.scan(plain, f"{server.url}/quantised") == alps.scan(plain, quantised)


OWN_FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "AutoGPTQ": (
        "gptq int4",
        "quantize_config.json",
        {"desc_act": False, "damp_percent": 0.01, "true_sequential": True},
    ),
    "AutoAWQ": ("awq", "quant_config.json", {"zero_point": True}),
    "Model Optimizer": ("nvfp4, Model Optimizer", "hf_quant_config.json", {"kv_cache_quant_algo": "FP8"}),
}


@pytest.mark.parametrize("tool", OWN_FILES)
def test_settings_in_the_file_where_the_tool_left_them(tool: str, tmp_path: Path) -> None:
    by, file, more = OWN_FILES[tool]
    quantiser = QUANTISERS[by]
    folder, plain = write_quantised(tmp_path, quantiser)
    document = json.loads((folder / "config.json").read_text())
    settings = {
        key: it for key, it in document.pop("quantization_config").items() if key != "quant_method"
    } | more
    if tool == "AutoAWQ":
        settings = {"w_bit": settings.pop("bits"), "q_group_size": settings.pop("group_size"), **settings}
    (folder / "config.json").write_text(json.dumps(document))
    if tool == "Model Optimizer":
        settings = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": settings}
    else:
        with pytest.raises(alps.ModelError, match=r"no quantize_config\.json or quant_config\.json"):
            alps.scan(plain, folder)
    (folder / file).write_text(json.dumps(settings))
    scores = alps.scan(plain, folder)
    assert (scores["max_delta"] == 0).all()
    assert scores.provenance["tuned_quantisation"] == quantiser.scheme


@pytest.mark.parametrize(
    ("by", "packing"), [("gptq int4", "auto_round:auto_gptq"), ("awq", "auto_round:auto_awq")]
)
def test_auto_round_in_the_packing_of_another_tool(by: str, packing: str, tmp_path: Path) -> None:
    folder, plain = write_quantised(tmp_path, QUANTISERS[by])
    document = json.loads((folder / "config.json").read_text())
    section = document["quantization_config"] | {"quant_method": "auto-round", "packing_format": packing}
    (folder / "config.json").write_text(json.dumps(document | {"quantization_config": section}))
    assert (alps.scan(plain, folder)["max_delta"] == 0).all()
    for refused in ({"packing_format": "auto_round:marlin"}, {"extra_config": {"q_proj": {"bits": 8}}}):
        changed = document | {"quantization_config": section | refused}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(alps.ModelError, match="is quantised by `auto-round"):
            alps.scan(plain, folder)


def test_mlx_has_settings_of_their_own_for_some_modules(tmp_path: Path) -> None:
    four, eight = QUANTISERS["mlx int4"], QUANTISERS["mlx int8"]
    stored: Tensors = {}
    expected: Tensors = {}
    for key, weight in random_weights(SHAPE, seed=1).items():
        one, of_one = quantise({key: weight}, eight if ".v_proj" in key else four)
        stored |= one
        expected |= of_one
    own = {name(layer, "v").removesuffix(".weight"): {"group_size": 64, "bits": 8} for layer in range(2)}
    plain = write(tmp_path / "plain", SHAPE.config(), expected)
    # mlx-lm writes the settings under both names.
    settings = four.config | {"mode": "affine"} | own
    document = SHAPE.config() | {"quantization": settings, "quantization_config": settings}
    scores = alps.scan(plain, write(tmp_path / "mlx", document, stored))
    assert (scores["max_delta"] == 0).all()
    assert scores.provenance["tuned_quantisation"] == "MLX int4; MLX int8"
    for changed, reason in (
        ({"quantization": settings | {"mode": "mxfp4"}}, "in the mode mxfp4"),
        ({"quantization": four.config}, "biases"),
        ({}, "has no `quantization`"),
    ):
        with pytest.raises(alps.AlpsError, match=reason):
            alps.scan(plain, write(tmp_path / "changed", SHAPE.config() | changed, stored))


NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "AQLM": ({"codebooks": torch.zeros(1, 256, 1, 8), "codes": torch.zeros(96, 40, 1)}, "AQLM"),
    "EETQ": ({"weight": torch.zeros(320, 96, dtype=torch.int8), "weight_scales": torch.ones(96)}, "I8|eetq"),
    "EXL2": ({"q_weight": torch.zeros(40, 96, dtype=torch.int32)}, "EXL2"),
    "EXL3": ({"trellis": torch.zeros(20, 6, 32, dtype=torch.int16)}, "EXL3"),
    "HIGGS": ({"weight": torch.zeros(96, 40, dtype=torch.int16)}, "I16"),
    "HQQ": ({"W_q": torch.zeros(160, 96, dtype=torch.uint8)}, "HQQ"),
    "Marlin": ({"B": torch.zeros(20, 192, dtype=torch.int32), "s": torch.ones(5, 96)}, "Marlin"),
    "quanto": (
        {"weight._data": torch.zeros(96, 320, dtype=torch.int8), "weight._scale": torch.ones(96, 1)},
        "quanto",
    ),
    "QuIP#": ({"Qidxs": torch.zeros(96, 40, dtype=torch.int64)}, r"QuIP#"),
    "SpQR": ({"dense_weights": torch.zeros(96, dtype=torch.int64)}, "SpQR"),
    "torchao": ({"_weight_qdata": torch.zeros(96, 320, dtype=torch.int8)}, "torchao"),
    "VPTQ": ({"centroids.weight": torch.zeros(1, 256, 8)}, "VPTQ"),
    "MXFP4 by Quark": (
        {
            "weight": torch.zeros(96, 160, dtype=torch.uint8),
            "weight_scale": torch.zeros(96, 10, dtype=torch.uint8),
        },
        "U8",
    ),
}
"""Tensors of a module by quantisers that are not read, and the word by which they are named."""


@pytest.mark.parametrize("tool", NAMED)
def test_other_quantisers_are_named(tool: str, tmp_path: Path) -> None:
    tensors, word = NAMED[tool]
    weights = random_weights(SHAPE, seed=1)
    base = write(tmp_path / "base", SHAPE.config(), weights)
    del weights[name(1, "k")]
    weights |= {f"{name(1, 'k').removesuffix('weight')}{ending}": it for ending, it in tensors.items()}
    method = {"quant_method": tool.lower()}
    for settings, expected in (({}, word), ({"quantization_config": method}, f"`{tool.lower()}`|{word}")):
        quantised = write(tmp_path / "quantised", SHAPE.config() | settings, weights)
        with pytest.raises(alps.AlpsError, match=f"(?i){expected}"):
            alps.scan(base, quantised)


@pytest.mark.parametrize(
    "by", ["fp8 blocks", "nvfp4, Model Optimizer", "mlx int4", "bitsandbytes int8", "awq", None]
)
def test_parts_of_another_format_are_refused(by: str | None, tmp_path: Path) -> None:
    weights = random_weights(SHAPE, seed=1)
    base = write(tmp_path / "base", SHAPE.config(), weights)
    stored, _ = quantise(weights, QUANTISERS[by]) if by else (weights, None)
    document = config(QUANTISERS[by]) if by else SHAPE.config()
    for part in ("weight_scale_2", "biases", "SCB", "weight_global_scale", "g_idx", "weight_zero_point"):
        key = f"{name(0, 'q').removesuffix('weight')}{part}"
        if key in stored or (by == "fp8 blocks" and part == "weight_zero_point"):
            continue
        tuned = write(tmp_path / part, document, stored | {key: torch.ones(1)})
        with pytest.raises(alps.AlpsError, match=part):
            alps.scan(base, tuned)
