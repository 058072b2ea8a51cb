"""Checkpoints with the rows of chosen heads of others."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import alps
from alps.cli import app
from support.checkpoints import (
    Shape,
    Tensors,
    name,
    random_weights,
    write,
    write_pair,
    write_sparse,
)
from support.quantisers import QUANTISERS
from support.tiny_models import tiny, words
from support.types_elsewhere import TYPES, TypeElsewhere

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = Shape(layers=2, query_heads=4, key_value_heads=2, head_size=4)
LAYOUTS = words(
    """
    albert bart bert bloom codegen convbert dbrx deberta deepseek_v3 falcon gemma3n_text gpt2 gpt_bigcode gpt_neox
    kimi_linear llama mimo_v2_flash minicpm3 modernbert mpt phi3 qwen2 qwen2_vl qwen3_next t5 vit wav2vec2 xlm xlnet
    """
)
"""One or two model types of each way to store attention."""


def states(model_type: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A model and another state of it, all of whose weights differ."""

    def build() -> Any:
        if model_type == "codegen":  # stores four blocks, so its heads are a multiple of four
            config = transformers.CodeGenConfig(vocab_size=64, n_embd=32, n_head=4, n_layer=3, rotary_dim=4)
            return transformers.CodeGenForCausalLM(config)
        return tiny(model_type)[0]

    torch.manual_seed(0)
    base, tuned = build(), build()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    for model, role in ((base.to(dtype), "base"), (tuned.to(dtype), "tuned")):
        model.save_pretrained(folder / role)
    return base, tuned


def some_groups(geometry: alps.Geometry) -> alps.HeadSet:
    """Every third key/value group, with all of its heads."""
    chosen = []
    for layer, sizes in zip(geometry.layers, geometry.sizes, strict=True):
        shared = sizes.query_heads // sizes.key_value_heads
        groups = range(layer % 2, sizes.key_value_heads, 3)
        chosen += [(layer, head) for head in range(sizes.query_heads) if head // shared in groups]
    return alps.HeadSet.from_pairs(chosen, geometry)


def every(checkpoint: Path) -> alps.HeadSet:
    geometry = alps.geometry(checkpoint)
    return alps.HeadSet(np.ones(geometry.shape, dtype=bool), geometry)


def tensors_of(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_a_graft_of_every_layout(model_type: str, tmp_path: Path) -> None:
    base, tuned = states(model_type, tmp_path)
    heads = some_groups(alps.geometry(tmp_path / "base"))
    component: Any = heads.geometry.component
    graft = alps.graft(tmp_path / "base", tmp_path / "tuned", heads, tmp_path / "graft")
    moved = alps.scan(tmp_path / "base", graft.path, component=component)["changed"] > 0
    np.testing.assert_array_equal(moved, heads.mask)
    same = alps.scan(tmp_path / "tuned", graft.path, component=component)["changed"] == 0
    np.testing.assert_array_equal(same, heads.mask)
    own, found = tensors_of(tmp_path / "base"), tensors_of(graft.path)
    assert own.keys() == found.keys()
    other = tensors_of(tmp_path / "tuned")
    changed = 0
    for key, tensor in found.items():
        differs = tensor != own[key]
        assert torch.equal(tensor[differs], other[key][differs])
        changed += int(differs.sum())
    assert changed * 4 <= graft.bytes

    # The live graft is the same, in torch's own words, and undone.
    before = {key: it.clone() for key, it in base.state_dict().items()}
    with alps.grafted(base, tuned, heads) as model:
        live = {key: it.clone() for key, it in model.state_dict().items()}
    loaded = type(base).from_pretrained(graft.path).state_dict()
    assert all(torch.equal(live[key], loaded[key]) for key in live)
    assert all(torch.equal(before[key], it) for key, it in base.state_dict().items())
    with alps.grafted(base, tmp_path / "tuned", heads):
        assert all(torch.equal(live[key], it) for key, it in base.state_dict().items())


@pytest.mark.parametrize("one", TYPES[::5], ids=lambda one: one.published.split("/")[-1])
def test_types_from_outside_transformers(one: TypeElsewhere, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {"q": 32, "k": one.groups * 8, "v": one.groups * 8}

    def tensors() -> Tensors:
        drawn = [
            {kind: torch.randn(n, 32, generator=generator) for kind, n in rows.items()} for _ in range(2)
        ]
        own = {key: it for layer, them in enumerate(drawn) for key, it in one.store(layer, them).items()}
        return own | {key: torch.randn(shape, generator=generator) for key, shape in one.others.items()}

    config = one.config | {"model_type": one.model_type}
    base, tuned = write_pair(tmp_path, config, tensors(), tensors())
    heads = some_groups(alps.geometry(base, component=one.component))
    graft = alps.graft(base, tuned, heads, tmp_path / "graft").path
    moved = alps.scan(base, graft, component=one.component)["changed"] > 0
    np.testing.assert_array_equal(moved, heads.mask)
    assert not (alps.scan(tuned, graft, component=one.component)["changed"][heads.mask] > 0).any()


def by_hand(base: Tensors, changes: list[tuple[Tensors, alps.HeadSet, float]]) -> Tensors:
    """What a graft should be, for a Llama of SHAPE."""
    result = {key: it.clone() for key, it in base.items()}
    for key, tensor in result.items():
        layer, kind = int(key.split(".")[2]), key.split(".")[-2][0]
        count = SHAPE.query_heads if kind == "q" else SHAPE.key_value_heads
        for index in range(count):
            rows = slice(index * SHAPE.head_size, (index + 1) * SHAPE.head_size)
            parts = [
                (tuned[key][rows], scale)
                for tuned, heads, scale in changes
                if (heads.mask if kind == "q" else heads.key_value_groups)[layer, index]
            ]
            if len(parts) == 1 and parts[0][1] == 1:
                tensor[rows] = parts[0][0].to(tensor.dtype)
            elif parts:
                wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
                own = base[key][rows].to(wide)
                total = own.clone()
                for other, scale in parts:
                    total.add_(scale * (other.to(wide) - own))
                tensor[rows] = total.to(tensor.dtype)
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("tuned_dtype", [None, torch.float32])
def test_scales_and_number_formats(
    dtype: torch.dtype, tuned_dtype: torch.dtype | None, tmp_path: Path
) -> None:
    weights = [{key: it.to(dtype) for key, it in random_weights(SHAPE, seed).items()} for seed in (1, 2, 3)]
    if tuned_dtype is not None:
        weights[1:] = [
            {key: it.to(tuned_dtype) for key, it in random_weights(SHAPE, s).items()} for s in (2, 3)
        ]
    folders = [write(tmp_path / str(n), SHAPE.config(), it) for n, it in enumerate(weights)]
    geometry = alps.geometry(folders[0])
    first = alps.HeadSet.from_pairs([(0, 0), (1, 3)], geometry)
    second = alps.HeadSet.from_pairs([(0, 1), (1, 0), (1, 2)], geometry)
    for scale in (1.0, 0.3, -2.0, 0.0):
        graft = alps.graft(folders[0], folders[1], first, tmp_path / f"one {scale}", scale=scale).path
        expected = by_hand(weights[0], [(weights[1], first, scale)])
        assert all(torch.equal(it, expected[key]) for key, it in tensors_of(graft).items())
    both = alps.graft(
        folders[0], [(folders[1], first, 0.7), (folders[2], second)], output=tmp_path / "both"
    ).path
    expected = by_hand(weights[0], [(weights[1], first, 0.7), (weights[2], second, 1.0)])
    assert all(torch.equal(it, expected[key]) for key, it in tensors_of(both).items())


def test_heads_are_reverted(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, SHAPE.config(), random_weights(SHAPE, 1), random_weights(SHAPE, 2))
    heads = alps.HeadSet.from_pairs([(0, 1), (1, 2)], alps.geometry(base))
    reverted = alps.graft(base, tuned, heads, tmp_path / "reverted", rest="tuned").path
    expected = by_hand(random_weights(SHAPE, 2), [(random_weights(SHAPE, 1), heads, 1.0)])
    assert all(torch.equal(it, expected[key]) for key, it in tensors_of(reverted).items())


def test_shards_names_and_files_are_those_of_the_base(tmp_path: Path) -> None:
    model, _ = tiny("qwen2")  # has biases
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "tuned")
    (tmp_path / "base/tokenizer_config.json").write_text("{}")
    (tmp_path / "base/chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "base/README.md").write_text("of another model")
    (tmp_path / "base/optimizer.pt").write_text("large")
    heads = some_groups(alps.geometry(tmp_path / "base"))
    graft = alps.graft(tmp_path / "base", tmp_path / "tuned", heads, tmp_path / "graft")
    files = {path.name for path in graft.path.iterdir()}
    assert files == {path.name for path in (tmp_path / "base").iterdir()} - {"README.md", "optimizer.pt"}
    assert {"tokenizer_config.json", "chat_template.jinja", "config.json"} <= set(graft.files)
    assert len([file for file in files if file.endswith(".safetensors")]) > 2
    loaded = type(model).from_pretrained(graft.path)
    with alps.grafted(type(model).from_pretrained(tmp_path / "base"), tmp_path / "tuned", heads) as live:
        expected = live.state_dict()
        assert any("bias" in key and (it != 0).any() for key, it in expected.items())
        assert all(torch.equal(it, expected[key]) for key, it in loaded.state_dict().items())


@pytest.mark.parametrize("kind", ["lora", "alps"])
def test_an_adapter_as_the_tuned_model(kind: str, tmp_path: Path) -> None:
    model, _ = tiny("llama")
    model.save_pretrained(tmp_path / "base")
    heads = some_groups(alps.geometry(tmp_path / "base"))
    settings: Any = (
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        if kind == "lora"
        else alps.AlpsConfig(heads=heads)
    )
    adapted = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora" not in key:
                parameter += 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    graft = alps.graft(tmp_path / "base", tmp_path / "adapter", heads, tmp_path / "graft").path
    expected = alps.graft(tmp_path / "base", tmp_path / "merged", heads, tmp_path / "expected").path
    for key, tensor in tensors_of(graft).items():
        torch.testing.assert_close(tensor, tensors_of(expected)[key], rtol=1e-6, atol=1e-7)
    with pytest.raises(alps.ModelError, match="changed by an adapter"):
        alps.graft(tmp_path / "base", tmp_path / "adapter", heads, tmp_path / "no", rest="tuned")


def test_what_cannot_be_grafted_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, SHAPE.config(), random_weights(SHAPE, 1), random_weights(SHAPE, 2))
    heads = alps.HeadSet.from_pairs([(0, 1)], alps.geometry(base))
    other = Shape(layers=2, query_heads=8, head_size=2)
    others = alps.HeadSet.from_pairs(
        [(0, 1)], alps.geometry(write(tmp_path / "other", other.config(), random_weights(other, 1)))
    )
    wide = Shape(layers=2, query_heads=4, key_value_heads=2, head_size=48, hidden_size=320)
    quantiser = QUANTISERS["fp8 rows, FBGEMM"]
    stored: Tensors = {}
    for key, weight in random_weights(wide, 1).items():
        parts, _ = quantiser.quantise(weight.float())
        stored |= {f"{key.removesuffix('weight')}{part}": it for part, it in parts.items()}
    packed = write(tmp_path / "packed", wide.config() | {"quantization_config": quantiser.config}, stored)
    plain = write(tmp_path / "plain", wide.config(), random_weights(wide, 1))
    of_wide = alps.HeadSet.from_pairs([(0, 1)], alps.geometry(plain))
    biased = random_weights(SHAPE, 2) | {name(0, "q").replace("weight", "bias"): torch.ones(16)}
    with_bias = write(tmp_path / "biased", SHAPE.config(), biased)
    there = sorted(path.name for path in tmp_path.iterdir())
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (alps.ArgumentError, "not those of", (base, tuned, others, tmp_path / "x"), {}),
        (alps.ArgumentError, "at least one head", (base, tuned, heads - heads, tmp_path / "x"), {}),
        (alps.ArgumentError, "finite number", (base, tuned, heads, tmp_path / "x"), {"scale": float("nan")}),
        (alps.ArgumentError, "rest: expected", (base, tuned, heads, tmp_path / "x"), {"rest": "both"}),
        (alps.ArgumentError, "output: expected", (base, tuned, heads), {}),
        (alps.ArgumentError, "expected a HeadSet", (base, tuned, None, tmp_path / "x"), {}),
        (alps.ArgumentError, "at least one checkpoint", (base, [], None, tmp_path / "x"), {}),
        (alps.PairError, "query heads", (base, tmp_path / "other", heads, tmp_path / "x"), {}),
        (alps.ModelError, "has no bias", (base, with_bias, heads, tmp_path / "x"), {}),
        (alps.ModelError, "quantised", (packed, plain, of_wide, tmp_path / "x"), {}),
        (alps.ModelError, "quantised", (plain, packed, of_wide, tmp_path / "x"), {}),
        (FileExistsError, "free", (base, tuned, heads, tmp_path / "base"), {}),
        (FileNotFoundError, "no such", (base, tuned, heads, tmp_path / "no/x"), {}),
        (FileNotFoundError, "no such", (base, tmp_path / "missing", heads, tmp_path / "x"), {}),
    ]
    for error, message, arguments, options in cases:
        with pytest.raises(error, match=message):
            alps.graft(*arguments, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    model, _ = tiny("llama")
    model.save_pretrained(tmp_path / "live")
    own = some_groups(alps.geometry(tmp_path / "live"))
    for live, message in (((model, base, own), "two states of one"), ((model, model, heads), "not those of")):
        with pytest.raises(alps.ArgumentError, match=message), alps.grafted(*live):
            pass
    alps.restrict(model, own)
    with pytest.raises(alps.ArgumentError, match="release"), alps.grafted(model, tmp_path / "live", own):
        pass


def test_the_weights_are_restored_after_an_exception(tmp_path: Path) -> None:
    base, tuned = states("llama", tmp_path, torch.bfloat16)
    before = {key: it.clone() for key, it in base.state_dict().items()}
    heads = some_groups(alps.geometry(tmp_path / "base"))
    graft = alps.grafted(base, tuned, heads, scale=0.3)
    graft.__enter__()
    assert any(not torch.equal(before[key], it) for key, it in base.state_dict().items())
    assert not graft.__exit__(KeyError, KeyError(), None)
    assert all(torch.equal(before[key], it) for key, it in base.state_dict().items())


@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes and the peak of memory")
def test_a_graft_of_405_billion_weights_takes_little_memory(tmp_path: Path) -> None:
    shape = Shape(layers=126, query_heads=128, key_value_heads=8, head_size=128, hidden_size=16384)
    tensors = {
        f"model.layers.{layer}.{part}": ("BF16", size)
        for layer in range(shape.layers)
        for part, size in (
            ("self_attn.q_proj.weight", (16384, 16384)),
            ("self_attn.k_proj.weight", (1024, 16384)),
            ("self_attn.v_proj.weight", (1024, 16384)),
            ("self_attn.o_proj.weight", (16384, 16384)),
            *((f"mlp.{name}_proj.weight", (16384, 53248)) for name in ("gate", "up", "down")),
        )
    }
    for role in ("base", "tuned"):
        (tmp_path / role).mkdir()
        (tmp_path / role / "config.json").write_text(json.dumps(shape.config()))
        names = list(tensors)
        index: dict[str, str] = {}
        for shard in range(4):
            own = names[shard::4]
            file = f"model-{shard + 1:05}-of-00004.safetensors"
            first = {own[0]: {0: b"\x80\x3f" * 8}} if role == "tuned" else {}
            write_sparse(tmp_path / role / file, {key: tensors[key] for key in own}, first)
            index |= dict.fromkeys(own, file)
        document = {"metadata": {}, "weight_map": index}
        (tmp_path / role / "model.safetensors.index.json").write_text(json.dumps(document))
    assert (tmp_path / "base/model-00001-of-00004.safetensors").stat().st_blocks < 10_000
    code = (
        "import alps, re; base = 'base';"
        "heads = alps.HeadSet.from_pairs([(0, 0), (60, 5), (125, 127)], alps.geometry(base));"
        "alps.graft(base, 'tuned', heads, 'graft');"
        "print(re.search('VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 256 * 1024
    sizes = [
        sum(f.stat().st_size for f in (tmp_path / role).glob("*.safetensors")) for role in ("base", "graft")
    ]
    assert sizes[0] == sizes[1] > 700e9
    assert sum(file.stat().st_blocks for file in (tmp_path / "graft").iterdir()) * 512 < 1e9
    assert alps.geometry(tmp_path / "graft") == alps.geometry(tmp_path / "base")


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    shape = Shape(layers=40, query_heads=8, key_value_heads=8, head_size=64, hidden_size=512)
    base, tuned = write_pair(tmp_path, shape.config(), random_weights(shape, 1), random_weights(shape, 2))
    expected = alps.graft(base, tuned, every(base), tmp_path / "expected").path
    content = (expected / "model.safetensors").read_bytes()
    code = (
        "import alps, numpy; geometry = alps.geometry('base');"
        "heads = alps.HeadSet(numpy.ones(geometry.shape, bool), geometry); print('ready', flush=True);"
        "alps.graft('base', 'tuned', heads, 'graft')"
    )
    whole = 0
    for delay in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, None):
        with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if delay is None:  # it may come to its end
                process.wait()
            else:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
        if (tmp_path / "graft").exists():
            assert (tmp_path / "graft/model.safetensors").read_bytes() == content
            assert (tmp_path / "graft/config.json").exists()
            whole += 1
            shutil.rmtree(tmp_path / "graft")
    assert whole >= 1
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".graft")} == {
        "base",
        "tuned",
        "expected",
    }


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, SHAPE.config(), random_weights(SHAPE, 1), random_weights(SHAPE, 2))
    heads = alps.HeadSet.from_pairs([(0, 1)], alps.geometry(base))

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alps.graft(base, tuned, heads, tmp_path / "graft", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_the_command(tmp_path: Path) -> None:
    base, tuned = write_pair(tmp_path, SHAPE.config(), random_weights(SHAPE, 1), random_weights(SHAPE, 2))
    heads = alps.HeadSet.from_pairs([(0, 1), (1, 2)], alps.geometry(base))
    heads.save(tmp_path / "heads.json")
    arguments = ["graft", str(base), str(tuned), "--heads", str(tmp_path / "heads.json"), "--output"]
    ran = CliRunner().invoke(app, [*arguments, str(tmp_path / "graft"), "--scale", "0.5"])
    assert ran.exit_code == 0, ran.output
    assert f"checkpoint written to {tmp_path / 'graft'}" in ran.stdout
    expected = by_hand(random_weights(SHAPE, 1), [(random_weights(SHAPE, 2), heads, 0.5)])
    assert all(torch.equal(it, expected[key]) for key, it in tensors_of(tmp_path / "graft").items())
    ran = CliRunner().invoke(app, [*arguments, str(tmp_path / "more"), "--rest", "tuned", "--json"])
    assert json.loads(ran.stdout)["graft"]["path"] == str(tmp_path / "more")
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "more")]).exit_code == 1


@pytest.mark.parametrize(
    ("scales", "factors"), [([], (1, 1)), (["0.5"], (0.5, 0.5)), (["0.7", "-2"], (0.7, -2))]
)
def test_the_command_takes_several_tuned_models(
    scales: list[str], factors: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {name: random_weights(SHAPE, seed) for seed, name in enumerate(("base", "maths", "german"))}
    for folder, tensors in weights.items():
        write(tmp_path / folder, SHAPE.config(), tensors)
    geometry = alps.geometry("base")
    maths = alps.HeadSet.from_pairs([(0, 1), (1, 2)], geometry)
    german = alps.HeadSet.from_pairs([(0, 0), (1, 2)], geometry)
    maths.save("maths.json")
    german.save("german.json")
    arguments = ["graft", "base", "maths", "german", "--heads", "maths.json", "--heads", "german.json"]
    options = [argument for scale in scales for argument in ("--scale", scale)]
    ran = CliRunner().invoke(app, [*arguments, *options, "--output", "both", "--json"])
    assert ran.exit_code == 0, ran.output
    expected = by_hand(
        weights["base"], [(weights["maths"], maths, factors[0]), (weights["german"], german, factors[1])]
    )
    assert all(torch.equal(it, expected[key]) for key, it in tensors_of(tmp_path / "both").items())
    assert json.loads(ran.stdout)["heads"]["report"]["heads"] == len(maths | german)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base", "--heads", "a"], "Missing argument"),
        (
            ["base", "one", "two", "--heads", "a"],
            "--heads: expected one file for each tuned model (2), found 1.",
        ),
        (["base", "one", "--heads", "a", "--heads", "b"], "for each tuned model (1), found 2."),
        (
            ["base", "one", "two", *2 * ("--heads", "a"), *3 * ("--scale", "1")],
            "--scale: expected one factor for all tuned models or one for each (2), found 3.",
        ),
        (["base", "one", "--heads", "a", "--scale", "nan"], "nan is not a number."),
    ],
)
def test_wrong_numbers_of_options_are_wrong_usage(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = CliRunner().invoke(app, ["graft", *arguments, "--output", "graft"])
    assert ran.exit_code == 2
    assert said in ran.stderr
