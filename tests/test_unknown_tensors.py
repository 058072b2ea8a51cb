"""Tensors near those of attention that a scan does not know: the right number or a refusal, never another number."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import alps
from support.checkpoints import Shape, Tensors, name, random_weights, write, write_pair
from support.tiny_models import tiny

SHAPE = Shape(layers=2)
WRAPPERS = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]


def pair(folder: Path) -> tuple[Path, Path]:
    return write_pair(folder, SHAPE.config(), random_weights(SHAPE, 1), random_weights(SHAPE, 2))


def assert_same(found: alps.HeadScores, expected: alps.HeadScores) -> None:
    for statistic in expected:
        np.testing.assert_array_equal(found[statistic], expected[statistic])


# The names that torch's wrappers add


@given(places=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(WRAPPERS)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wrappers_anywhere_in_a_name(places: list[tuple[int, str]], tmp_path: Path) -> None:
    base, _ = pair(tmp_path)

    def wrapped(key: str) -> str:
        parts = key.split(".")
        for place, wrapper in places:
            parts.insert(place, wrapper)
        return ".".join(parts)

    tuned = write(
        tmp_path / "wrapped",
        SHAPE.config(),
        {wrapped(key): it for key, it in random_weights(SHAPE, 2).items()},
    )
    assert_same(alps.scan(base, tuned), alps.scan(base, tmp_path / "tuned"))


@pytest.mark.filterwarnings("ignore")
def test_layers_compiled_one_by_one(tmp_path: Path) -> None:
    model, _ = tiny("llama")
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[:16] += 1
    model.save_pretrained(tmp_path / "tuned")
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer)
    model.save_pretrained(tmp_path / "compiled")
    assert any("_orig_mod" in key for key in load_file(tmp_path / "compiled/model.safetensors"))
    expected = alps.scan(tmp_path / "base", tmp_path / "tuned")
    assert_same(alps.scan(tmp_path / "base", tmp_path / "compiled"), expected)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    base, _ = pair(tmp_path)
    weights = random_weights(SHAPE, 2)
    doubled = {**weights, name(0, "q").replace("self_attn", "_orig_mod.self_attn"): weights[name(0, "q")] + 1}
    tuned = write(tmp_path / "doubled", SHAPE.config(), doubled)
    with pytest.raises(
        alps.CheckpointError, match=r"there are two tensors `model.layers.0.self_attn.q_proj.weight`"
    ):
        alps.scan(base, tuned)


# Adapters that were never merged

UNMERGED = [
    "base_layer.weight", "lora_A.default.weight", "lora_B.sql.weight", "lora_magnitude_vector.default.weight",
    "lora_embedding_A.default", "hada_w1_a.default", "lokr_w2.default", "ia3_l.default", "alps_rows.default",
    "oft_R.default.weight", "boft_R.default", "vera_lambda_b.default", "modules_to_save.default.weight",
    "original_module.weight", "lora_down.weight",
]  # fmt: skip


@pytest.mark.parametrize("ending", UNMERGED)
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_that_was_never_merged_is_refused(
    ending: str, prefix: str, beside: bool, tmp_path: Path
) -> None:
    base, _ = pair(tmp_path)
    weights = {prefix + key: it for key, it in random_weights(SHAPE, 2).items()}
    query = prefix + name(1, "q")
    weights[query.removesuffix("weight") + ending] = torch.randn(4, 24)
    if not beside:
        del weights[query]
    tuned = write(tmp_path / "unmerged", SHAPE.config(), weights)
    for scan in (lambda: alps.scan(base, tuned), lambda: alps.geometry(tuned)):
        with pytest.raises(
            alps.CheckpointError, match=r"belongs to an adapter that was never merged .* merge it with"
        ):
            scan()


@pytest.mark.filterwarnings("ignore")
def test_the_whole_state_of_a_model_of_peft_is_refused(tmp_path: Path) -> None:
    model, config = tiny("llama")
    model.save_pretrained(tmp_path / "base")
    tuned: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    state = {key: it.contiguous().clone() for key, it in tuned.state_dict().items()}
    write(tmp_path / "state", config.to_dict(), state)
    with pytest.raises(
        alps.CheckpointError, match=r"never merged into the weights of `base_model.model.model.layers.0"
    ):
        alps.scan(tmp_path / "base", tmp_path / "state")


def test_adapters_of_other_parts_change_no_head(tmp_path: Path) -> None:
    base, expected = pair(tmp_path)
    weights = random_weights(SHAPE, 2) | {
        "model.layers.0.mlp.up_proj.lora_A.default.weight": torch.randn(2, 24)
    }
    assert_same(
        alps.scan(base, write(tmp_path / "other", SHAPE.config(), weights)), alps.scan(base, expected)
    )


# Any other tensors

ENDINGS = st.sampled_from(
    [
        "weight", "bias", "weight_scale", "input_scale", "weight_g", "weight_v", "delta", "weight_mask", "scale",
        "weight.mask", "rows", "0.weight", "adapter.weight", "weight_orig", "q_proj.weight",
        "parametrizations.weight.0", "inv_freq", "weight_scale_2", "lora_A.weight", "B",
    ]
)  # fmt: skip
MODELS = ["llama", "gpt_neox", "gpt2", "deepseek_v3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, alps.HeadScores]]:
    """For each layout a base, a tuned checkpoint and their scores."""
    found = {}
    for model_type in MODELS:
        folder = tmp_path_factory.mktemp(model_type)
        model, _ = tiny(model_type)
        model.save_pretrained(folder / "base")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(
                    0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
                )
        model.save_pretrained(folder / "tuned")
        base, tuned = folder / "base", folder / "tuned"
        found[model_type] = (base, tuned, alps.scan(base, tuned))
    return found


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_names_give_the_right_number_or_a_refusal(
    models: dict[str, tuple[Path, Path, alps.HeadScores]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base, tuned, expected = models[data.draw(st.sampled_from(MODELS))]
    tensors: Tensors = load_file(tuned / "model.safetensors")
    attention = sorted(key for key in tensors if "att" in key)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(attention))
        module = key.rpartition(".")[0]
        match data.draw(st.sampled_from(["add", "add beside", "rename", "remove", "copy layer"])):
            case "add":
                tensors.setdefault(f"{module}.{data.draw(ENDINGS)}", torch.randn(3, 5))
            case "add beside":
                parent = module.rpartition(".")[0]
                tensors.setdefault(f"{parent}.{data.draw(ENDINGS)}", torch.randn(4))
            case "rename" if key in tensors:
                tensors.setdefault(f"{module}.{data.draw(ENDINGS)}", tensors.pop(key))
            case "remove":
                tensors.pop(key, None)
            case "copy layer":
                tensors.setdefault(key.replace(".0.", ".7.", 1), torch.randn(2, 2))
    folder = tmp_path_factory.mktemp("changed")
    shutil.copy(tuned / "config.json", folder)
    save_file({key: it.clone().contiguous() for key, it in tensors.items()}, folder / "model.safetensors")
    try:
        found = alps.scan(base, folder)
    except alps.AlpsError:
        return
    finally:
        shutil.rmtree(folder)
    assert found.geometry == expected.geometry
    assert_same(found, expected)
