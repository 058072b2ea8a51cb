"""A scan of an adapter gives the same scores as a scan of the model that PEFT merges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import alps
from alps import cli
from alps.statistics import Form
from support.adapters import assert_same, edit, load, merge, save_adapter, save_base
from support.tiny_models import LAYERS, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT asks transformers
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    # PEFT takes the bias of a B for half a matrix.
    pytest.mark.filterwarnings("ignore:.*have invalid shape.*lora_B.bias:peft.utils.warning.PeftWarning"),
]

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
    "bert": ["query", "key", "value"],
    "phi3": ["qkv_proj"],
    "t5": ["q", "k", "v"],
    "llava": ["q_proj", "k_proj", "v_proj"],
    "vit": ["q_proj", "v_proj"],
    "nomic_bert": ["q_proj", "v_proj"],
}
BIASED = {"gpt2", "gpt_neox", "bert"}


class Pair:
    """A base, and adapters of it."""

    def __init__(self, model_type: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model, _ = tiny(model_type)
        self.folder = folder
        self.base = save_base(self.model, folder / "base", dtype)
        self.targets = TARGETS[model_type]
        self.adapters = 0

    def adapt(self, config: peft.PeftConfig) -> tuple[Path, Path]:
        """A new adapter, and the base with it merged."""
        self.adapters += 1
        adapter, merged = (self.folder / f"{kind} {self.adapters}" for kind in ("adapter", "merged"))
        save_adapter(load(self.model, self.base), config, adapter)
        merge(load(self.model, self.base), adapter, merged)
        return adapter, merged

    def check(self, config: peft.PeftConfig, form: Form = "qkv", moves: bool = True) -> alps.HeadScores:
        adapter, merged = self.adapt(config)
        statistics = [*alps.statistics.resolve(None, form), "sorted_wasserstein"]
        found = alps.scan(self.base, adapter, form=form, statistics=statistics)
        assert_same(found, alps.scan(self.base, merged, form=form, statistics=statistics))
        assert (found["delta_norm"] > 0).any() == moves
        assert found.provenance["tuned_adapter"] == peft.PeftType(config.peft_type).value
        assert found.provenance["tuned_adapter_over"] == str(self.base)
        return found


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "rank_pattern": {r".*\.0\..*": 2, r".*\.[12]\..*": 5},
        "alpha_pattern": {r"^.*\.1\..*": 3, r".*\.2\.(\w+\.)+\w+": 7},
    },
    "DoRA": {"use_dora": True},
    "DoRA and rsLoRA": {"use_dora": True, "use_rslora": True},
    "biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "one layer": {"layers_to_transform": [1]},
    "high rank": {"r": 70},
    "patterns of Python": {
        "rank_pattern": {r"(?=.*\.0\.).*": 2, r".*\.(?!0\.)(?P<layer>\d)\.(?:\w+\.)+\w+": 5},
        "alpha_pattern": {r".*(?<!\.0)\.\w+": 3},
    },
    "orthogonal start": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "bert"])
def test_lora(model_type: str, variant: str, tmp_path: Path) -> None:
    pair = Pair(model_type, tmp_path)
    arguments: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": pair.targets,
        "fan_in_fan_out": model_type == "gpt2",
    }
    found = pair.check(peft.LoraConfig(**arguments | VARIANTS[variant]))
    moved = (found["delta_norm"] > 0).all(axis=1).tolist()
    assert moved == ([False, True, False] if variant == "one layer" else [True] * LAYERS)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rank=st.integers(1, 40),
    alpha=st.integers(1, 64),
    rslora=st.booleans(),
    dora=st.booleans(),
    targets=st.lists(st.sampled_from(TARGETS["llama"]), min_size=1, unique=True),
    saved=st.sampled_from([None, ["k_proj"], ["mlp"], ["embed_tokens"]]),
    form=st.sampled_from(["qkv", "product"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_lora_of_any_shape(
    rank: int,
    alpha: int,
    rslora: bool,
    dora: bool,
    targets: list[str],
    saved: list[str] | None,
    form: Form,
    dtype: torch.dtype,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        use_dora=dora,
        target_modules=[target for target in targets if target not in (saved or [])] or ["q_proj"],
        modules_to_save=saved,
    )
    Pair("llama", folder, dtype).check(config, form)
    shutil.rmtree(folder)


@pytest.mark.parametrize("model_type", ["phi3", "t5", "llava"])
def test_other_layouts(model_type: str, tmp_path: Path) -> None:
    pair = Pair(model_type, tmp_path)
    pair.check(peft.LoraConfig(r=4, target_modules=pair.targets))


@pytest.mark.parametrize("model_type", sorted(BIASED))
def test_a_bias_of_the_product(model_type: str, tmp_path: Path) -> None:
    pair = Pair(model_type, tmp_path)
    transposed = model_type == "gpt2"
    pair.check(peft.LoraConfig(r=4, target_modules=pair.targets, lora_bias=True, fan_in_fan_out=transposed))


@pytest.mark.parametrize("model_type", ["vit", "nomic_bert"])
def test_modules_that_are_other_tensors_on_disk(model_type: str, tmp_path: Path) -> None:
    """ViT's have other names there, and Nomic BERT's are one."""
    pair = Pair(model_type, tmp_path)
    with safe_open(pair.base / "model.safetensors", "torch") as file:
        assert not any("q_proj" in name for name in file.keys())  # noqa: SIM118 (not a dictionary)
    pair.check(peft.LoraConfig(r=4, target_modules=pair.targets))
    pair.check(peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    pair.check(peft.LoraConfig(r=4, target_modules=[*pair.targets, "o_proj"]))


def test_a_base_in_float64_is_not_rounded(tmp_path: Path) -> None:
    pair = Pair("llama", tmp_path, torch.float64)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[0])
    adapter, _ = pair.adapt(config)
    adapted = alps.scan(pair.base, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert (adapted["delta_norm"][0] > 0).all()
    assert (alps.scan(pair.base, adapter)["delta_norm"] == 0).all()


KINDS: dict[str, Any] = {
    "IA3": lambda targets: peft.IA3Config(target_modules=targets, feedforward_modules=targets[:1]),
    "IA3 of rows": lambda targets: peft.IA3Config(target_modules=targets, feedforward_modules=[]),
    "LoHa": lambda targets: peft.LoHaConfig(
        r=3, alpha=5, target_modules=targets, rank_pattern={targets[-1]: 2}
    ),
    "LoKr": lambda targets: peft.LoKrConfig(r=2, alpha=5, target_modules=targets),
    "LoKr of products": lambda targets: peft.LoKrConfig(
        r=1, alpha=5, target_modules=targets, decompose_both=True, decompose_factor=4
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_other_kinds_of_adapters(model_type: str, kind: str, tmp_path: Path) -> None:
    pair = Pair(model_type, tmp_path)
    pair.check(KINDS[kind](pair.targets))


def test_ia3_of_transposed_weights(tmp_path: Path) -> None:
    pair = Pair("gpt2", tmp_path)
    pair.check(peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert"])
def test_adapters_of_this_project(model_type: str, tmp_path: Path) -> None:
    import alps.training  # makes the kind known to PEFT

    pair = Pair(model_type, tmp_path)
    heads = alps.HeadSet.from_pairs([(0, 1), (2, 3), (2, 5)], alps.geometry(pair.base))
    found = pair.check(alps.AlpsConfig(heads=heads))
    assert set(heads.pairs()) <= set(zip(*(found["delta_norm"] > 0).nonzero(), strict=True))
    assert (found["delta_norm"][1] == 0).all()


# Formats.

OLD_KEYS = """
    base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform
    lora_alpha lora_dropout modules_to_save peft_type r target_modules task_type
"""
"""Those of PEFT 0.4."""


def test_an_adapter_of_an_old_peft(pair: Pair, adapted: tuple[Path, Path]) -> None:
    path = adapted[0] / "adapter_config.json"
    document = json.loads(path.read_text())
    old = {key: document[key] for key in OLD_KEYS.split()} | {"enable_lora": None, "merge_weights": False}
    path.write_text(json.dumps(old))
    assert_same(alps.scan(pair.base, adapted[0]), alps.scan(pair.base, adapted[1]))
    path.write_text(json.dumps(old | {"enable_lora": [True, False, True]}))
    with pytest.raises(alps.CheckpointError, match="`enable_lora`"):
        alps.scan(pair.base, adapted[0])


def test_an_adapter_that_transformers_saves(pair: Pair, adapted: tuple[Path, Path]) -> None:
    model = load(pair.model, pair.base)
    model.load_adapter(str(adapted[0]))
    saved = pair.folder / "saved by transformers"
    model.save_pretrained(saved)
    assert_same(alps.scan(pair.base, saved), alps.scan(pair.base, adapted[1]))


# Names.


def test_an_adapter_of_some_modules(tmp_path: Path) -> None:
    """Trained on the model without its head, so that all names lack a prefix."""
    pair = Pair("llama", tmp_path)
    adapter, merged = pair.adapt(peft.LoraConfig(r=4, target_modules=["q_proj"]))
    path = adapter / "adapter_model.safetensors"
    save_file(
        {
            name.replace("base_model.model.model.", "base_model.model."): it
            for name, it in load_file(path).items()
        },
        path,
    )
    assert_same(alps.scan(pair.base, adapter), alps.scan(pair.base, merged))


def test_an_adapter_of_another_part_says_that_nothing_moved(tmp_path: Path) -> None:
    pair = Pair("llama", tmp_path)
    adapter, _ = pair.adapt(peft.LoraConfig(r=4, target_modules=["gate_proj", "lm_head"]))
    scores = alps.scan(pair.base, adapter)
    assert (scores["delta_norm"] == 0).all()
    assert "changes no query, key or value weights" in scores.provenance["tuned_note"]
    result = CliRunner().invoke(cli.app, ["scan", str(pair.base), str(adapter)])
    assert result.exit_code == 0
    assert "changes no query, key or value weights" in " ".join(result.output.split())


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    pair = Pair("llama", tmp_path)
    adapter, _ = pair.adapt(peft.LoraConfig(r=4, target_modules=["q_proj"]))
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for old, new, said in (
        ("self_attn", "encoder_attn", "has no such module"),
        ("q_proj", "q_projection", "has no such module"),
        ("layers.2", "layers.3", "layers.3.self_attn"),
        ("model.layers", "model.vision_tower.layers", "has no such module"),
        ("model.model.layers", "model.audio_tower.layers", "has no such module"),
        ("model.model.layers", "model.mtp.layers", "has no such module"),
    ):
        save_file({name.replace(old, new): it for name, it in tensors.items()}, path)
        with pytest.raises(alps.CheckpointError, match=said):
            alps.scan(pair.base, adapter)


# What an adapter changes.


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair("llama", tmp_path)


@pytest.fixture
def adapted(pair: Pair) -> tuple[Path, Path]:
    return pair.adapt(peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def test_an_adapter_as_base(pair: Pair, adapted: tuple[Path, Path]) -> None:
    """Its own base is what its configuration names."""
    adapter, merged = adapted
    found = alps.scan(adapter, pair.base)
    assert_same(found, alps.scan(merged, pair.base))
    assert found.provenance["base_adapter_over"] == str(pair.base)
    assert alps.geometry(adapter) == alps.geometry(pair.base)


def test_two_adapters(pair: Pair, adapted: tuple[Path, Path]) -> None:
    other, other_merged = pair.adapt(peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj"], use_dora=True))
    found = alps.scan(adapted[0], other)
    assert_same(found, alps.scan(adapted[1], other_merged))
    assert found.provenance["base_adapter_over"] == found.provenance["tuned_adapter_over"] == str(pair.base)


def test_a_base_that_is_not_on_this_machine(pair: Pair, adapted: tuple[Path, Path]) -> None:
    adapter, merged = adapted
    edit(adapter / "adapter_config.json", {"base_model_name_or_path": "owner/absent", "revision": "v1"})
    for other in (pair.base, adapter):
        with pytest.raises(
            alps.CheckpointError, match=r"trained on owner/absent@v1.*adapter_base="
        ) as caught:
            alps.scan(adapter, other)
        assert str(adapter) in str(caught.value)
    # Over the other side, which is the base, it is known what is meant.
    scores = alps.scan(pair.base, adapter)
    assert scores.provenance["tuned_adapter_trained_on"] == "owner/absent"
    assert_same(alps.scan(adapter, pair.base, adapter_base=pair.base), alps.scan(merged, pair.base))
    result = CliRunner().invoke(
        cli.app, ["scan", str(adapter), str(pair.base), "--adapter-base", str(pair.base)]
    )
    assert result.exit_code == 0


def test_a_base_that_is_not_named(pair: Pair, adapted: tuple[Path, Path]) -> None:
    edit(adapted[0] / "adapter_config.json", {"base_model_name_or_path": None})
    with pytest.raises(alps.CheckpointError, match=r"no `base_model_name_or_path`.*--adapter-base"):
        alps.scan(adapted[0], pair.base)


def test_an_adapter_of_an_adapter(pair: Pair, adapted: tuple[Path, Path]) -> None:
    with pytest.raises(alps.CheckpointError, match="is an adapter as well"):
        alps.scan(pair.base, adapted[0], adapter_base=adapted[0])


def test_adapter_base_without_an_adapter_is_refused(pair: Pair, adapted: tuple[Path, Path]) -> None:
    with pytest.raises(alps.ArgumentError, match=r"neither .* is an adapter"):
        alps.scan(pair.base, adapted[1], adapter_base=pair.base)


def test_an_adapter_beside_weights_changes_those(pair: Pair, adapted: tuple[Path, Path]) -> None:
    """As transformers loads such a folder."""
    adapter, merged = adapted
    other = Pair("llama", pair.folder / "other")
    tensors = load_file(other.base / "model.safetensors")
    tensors = {name: tensor.roll(1) for name, tensor in tensors.items()}
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / file, other.base / file)
    save_file(tensors, other.base / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = type(pair.model).from_pretrained(other.base)
    query = "model.layers.0.self_attn.q_proj"
    assert torch.equal(loaded.get_submodule(query).base_layer.weight, tensors[f"{query}.weight"])
    scores = alps.scan(pair.base, other.base)
    assert scores.provenance["tuned_adapter_over"] == str(other.base)
    assert scores["delta_norm"].min() > 2 * alps.scan(pair.base, merged)["delta_norm"].max()
    weights_only = alps.scan(other.base / "model.safetensors", other.base / "model.safetensors")
    assert (weights_only["delta_norm"] == 0).all()


def test_the_number_of_threads_changes_nothing(pair: Pair, adapted: tuple[Path, Path]) -> None:
    assert alps.scan(pair.base, adapted[0], threads=1) == alps.scan(pair.base, adapted[0], threads=5)


def test_the_file_of_an_adapter_is_the_adapter(pair: Pair, adapted: tuple[Path, Path]) -> None:
    found = alps.scan(pair.base, adapted[0] / "adapter_model.safetensors")
    assert found == alps.scan(pair.base, adapted[0])


def test_provenance_names_what_was_read(pair: Pair, adapted: tuple[Path, Path]) -> None:
    scores = alps.scan(pair.base, adapted[0])
    assert scores.provenance["base_files"] == "model.safetensors"
    assert scores.provenance["tuned_files"] == "adapter_model.safetensors over model.safetensors"
    result = CliRunner().invoke(cli.app, ["scan", str(pair.base), str(adapted[0])])
    assert "adapter_model.safetensors over model.safetensors" in " ".join(result.output.split())


# Files that must not be read.


def test_a_pickled_adapter(pair: Pair, adapted: tuple[Path, Path]) -> None:
    (adapted[0] / "adapter_model.safetensors").rename(adapted[0] / "adapter_model.bin")
    with pytest.raises(alps.CheckpointError, match=r"`adapter_model.bin` is a pickle file.*never opened"):
        alps.scan(pair.base, adapted[0])


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_with_a_missing_file(pair: Pair, adapted: tuple[Path, Path], file: str) -> None:
    (adapted[0] / file).unlink()
    with pytest.raises((FileNotFoundError, alps.CheckpointError), match=file):
        alps.scan(
            pair.base, adapted[0] / "adapter_model.safetensors" if file.endswith(".json") else adapted[0]
        )


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": ({"peft_type": "BOFT"}, "kind `BOFT`"),
    "changed base": ({"init_lora_weights": "pissa"}, "pissa.*base"),
    "other rank": ({"r": 8}, r"lora_B.*\[96, 8\].*\[96, 4\]"),
    "unknown meaning": ({"use_qalora": True}, "use_qalora"),
    "missing magnitude": ({"use_dora": True}, "lora_magnitude_vector"),
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_configuration(pair: Pair, adapted: tuple[Path, Path], kind: str) -> None:
    changes, said = CONFIGURATIONS[kind]
    edit(adapted[0] / "adapter_config.json", changes)
    with pytest.raises(alps.CheckpointError, match=said) as caught:
        alps.scan(pair.base, adapted[0])
    assert str(adapted[0]) in str(caught.value)


def test_tensors(pair: Pair, adapted: tuple[Path, Path]) -> None:
    path = adapted[0] / "adapter_model.safetensors"
    good = load_file(path)
    query = "base_model.model.model.layers.1.self_attn.q_proj"
    missing = {name: it for name, it in good.items() if name != f"{query}.lora_B.weight"}
    bad = {
        "missing": (missing, alps.CheckpointError, "no tensor `lora_B.weight`"),
        "shape": (
            good | {f"{query}.lora_A.weight": torch.zeros(4, 50)},
            alps.CheckpointError,
            r"\[4, 48\].*\[4, 50\]",
        ),
        "NaN": (
            good | {f"{query}.lora_B.weight": torch.full((96, 4), torch.nan)},
            alps.WeightsError,
            "lora_B",
        ),
    }
    for tensors, error, said in bad.values():
        save_file(tensors, path)
        with pytest.raises(error, match=said) as caught:
            alps.scan(pair.base, adapted[0])
        assert str(path) in str(caught.value)
        assert "layers.1.self_attn.q_proj" in str(caught.value)


def test_a_base_of_another_shape(pair: Pair, adapted: tuple[Path, Path], tmp_path: Path) -> None:
    other = Pair("llama", tmp_path / "other").base
    config = json.loads((other / "config.json").read_text())
    tensors = load_file(other / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            tensors[name] = tensor[:, :40].contiguous()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 40}))
    with pytest.raises(alps.CheckpointError, match=r"lora_A.*\[4, 40\].*\[4, 48\]"):
        alps.scan(other, adapted[0])


def test_a_pattern_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    pair = Pair("llama", tmp_path)
    adapter, _ = pair.adapt(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    edit(adapter / "adapter_config.json", {"alpha_pattern": {r"((?=.)(\w|\.)+)+!(?<=!)": 3}})
    with pytest.raises(alps.CheckpointError, match=r"the pattern .* cannot be matched with"):
        alps.scan(pair.base, adapter)


@pytest.mark.parametrize("pattern", ["[q&&k]_proj", "[a--q]_proj", "[q~~k]_proj"])
def test_a_pattern_that_two_readers_read_differently_is_refused(pattern: str, tmp_path: Path) -> None:
    pair = Pair("llama", tmp_path)
    adapter, _ = pair.adapt(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    edit(adapter / "adapter_config.json", {"alpha_pattern": {pattern: 3}})
    with pytest.raises(alps.CheckpointError, match=r"operation on sets"):
        alps.scan(pair.base, adapter)


OTHER_KINDS = sorted({kind.value for kind in peft.PeftType} - {"LORA", "LOHA", "LOKR", "IA3", "ALPS"})


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_an_adapter_of_another_kind_is_named_by_its_kind(kind: str, tmp_path: Path) -> None:
    pair = Pair("llama", tmp_path)
    adapter, _ = pair.adapt(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    edit(
        adapter / "adapter_config.json",
        {"peft_type": kind, "r": None, "projection_prng_key": 0, "beta1": 0.85},
    )
    with pytest.raises(
        alps.CheckpointError, match=f"the adapter is of the kind `{kind}`; those that are read are"
    ):
        alps.scan(pair.base, adapter)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "olmoe"])
def test_lora_on_all_linears_of_a_mixture_of_experts(model_type: str, tmp_path: Path) -> None:
    model, _ = tiny(model_type)
    base, adapter = save_base(model, tmp_path / "base", torch.float32), tmp_path / "adapter"
    save_adapter(load(model, base), peft.LoraConfig(r=2, target_modules="all-linear"), adapter)
    assert json.loads((adapter / "adapter_config.json").read_text())["target_parameters"]
    merge(load(model, base), adapter, tmp_path / "merged")
    found, expected = (alps.scan(base, tuned) for tuned in (adapter, tmp_path / "merged"))
    assert (found["delta_norm"] > 0).all()
    assert_same(found, expected)


@pytest.mark.parametrize("target", ["q_proj.weight", "self_attn.q_proj.weight", "weight"])
def test_changes_of_single_parameters_of_attention_are_refused(target: str, tmp_path: Path) -> None:
    pair = Pair("llama", tmp_path)
    adapter, _ = pair.adapt(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    edit(adapter / "adapter_config.json", {"target_parameters": [target]})
    with pytest.raises(alps.CheckpointError, match="`target_parameters` names"):
        alps.scan(pair.base, adapter)


def test_a_folder_of_adapters_names_them(tmp_path: Path) -> None:
    pair = Pair("llama", tmp_path)
    adapter, _ = pair.adapt(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    folder = tmp_path / "several"
    for name in ("sql", "checkpoint-500"):
        shutil.copytree(adapter, folder / name)
    with pytest.raises(
        alps.CheckpointError, match="there is an adapter in `checkpoint-500`, `sql`: pass the path"
    ):
        alps.scan(pair.base, folder)
    assert (alps.scan(pair.base, folder / "sql")["delta_norm"] > 0).all()
