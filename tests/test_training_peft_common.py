"""What PEFT's own tests ask of every method, asked of `AlpsConfig`.

Two of PEFT's checks make no sense for rows that replace rows: two adapters of the same rows cannot be merged at once, since
a row cannot hold both, and PEFT refuses a conversion to LoRA, since rows are not of low rank. Where PEFT allows a tolerance
between the outputs before and after a merge, these tests ask for the same bits, since a merge adds nothing up.
"""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
    set_base_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import alps
from alps import AlpsConfig, ArgumentError, HeadSet, WeightsError
from alps.training.peft.layer import AlpsLayer
from support.training import Model, chosen, loss_of, states, tiny_model, tokens

pytestmark = [
    # PEFT still asks what transformers deprecates.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

MODEL_TYPES = ["llama", "qwen2", "gpt2", "opt"]
OTHER_PAIRS = [(1, 0), (2, 1)]
"""Heads none of which shares a key/value group with those of `chosen`."""


@pytest.fixture(scope="module", params=MODEL_TYPES)
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param, torch.float32).save_pretrained(folder)
    return folder


def load(folder: Path, **settings: Any) -> Model:
    return AutoModelForCausalLM.from_pretrained(folder, **settings).eval()


def config_of(model: Model, pairs: list[tuple[int, int]] | None = None, **settings: Any) -> AlpsConfig:
    return AlpsConfig(heads=chosen(model, pairs), task_type="CAUSAL_LM", **settings)


def perturb(model: Model, adapter: str = "default", seed: int = 0) -> Model:
    """Changes the rows of an adapter, as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, rows in model.named_parameters():
            if "alps_" in name and name.endswith(f".{adapter}"):
                rows.add_(0.3 * torch.randn(rows.shape, generator=generator))
    return model


def adapted(folder: Path, **settings: Any) -> Model:
    """A base with a changed adapter."""
    model = load(folder)
    return perturb(get_peft_model(model, config_of(model, **settings)).eval())


def two_adapters(folder: Path, pairs: list[tuple[int, int]] | None = None) -> Model:
    """A base with the changed adapters "default" and "other"."""
    model = adapted(folder)
    model.add_adapter("other", config_of(load(folder), pairs))
    return perturb(model, "other", seed=1).eval()


@torch.no_grad()
def logits(model: Model, **settings: Any) -> Tensor:
    result: Tensor = model(input_ids=tokens(), **settings).logits
    return result


def tensors_of(model: nn.Module, adapter: str) -> list[str]:
    return [name for name in model.state_dict() if f".{adapter}" in f"{name}."]


def test_names_and_methods(base: Path) -> None:
    model = load(base)
    model = get_peft_model(model, config_of(model), adapter_name="its-name")
    assert any("its-name" in name for name, _ in model.named_parameters())
    assert all(
        callable(getattr(model, name)) for name in ("save_pretrained", "from_pretrained", "push_to_hub")
    )


def test_preparation_for_training(base: Path) -> None:
    model = prepare_model_for_kbit_training(load(base))
    assert not any(it.requires_grad for it in model.parameters())
    model = get_peft_model(model, config_of(model))
    model.enable_input_require_grads()
    assert model.get_input_embeddings()(tokens()).requires_grad


def test_little_memory(base: Path, tmp_path: Path) -> None:
    adapted(base).save_pretrained(tmp_path)
    model: Model = PeftModel.from_pretrained(load(base), tmp_path, low_cpu_mem_usage=True)
    model.load_adapter(tmp_path, adapter_name="other", low_cpu_mem_usage=True)
    assert {it.device.type for it in model.parameters()} == {"cpu"}
    model = load(base)
    inject_adapter_in_model(config_of(model), model, low_cpu_mem_usage=True)
    assert "meta" in {it.device.type for it in model.parameters()}


@pytest.mark.parametrize("safe", [True, False])
def test_saving_and_loading(base: Path, tmp_path: Path, safe: bool) -> None:
    model = adapted(base)
    model.save_pretrained(str(tmp_path), safe_serialization=safe)
    files = {it.name for it in tmp_path.iterdir()}
    assert files == {"README.md", "adapter_config.json", f"adapter_model.{'safetensors' if safe else 'bin'}"}
    again: Model = PeftModel.from_pretrained(load(base), tmp_path)
    assert all(torch.equal(again.state_dict()[name], it) for name, it in model.state_dict().items())
    assert torch.equal(logits(again), logits(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert "library_name: peft" in (tmp_path / "README.md").read_text()


def test_selected_adapters_are_saved(base: Path, tmp_path: Path) -> None:
    model = two_adapters(base)
    model.save_pretrained(tmp_path / "both")
    again: Model = PeftModel.from_pretrained(load(base), tmp_path / "both")
    again.load_adapter(tmp_path / "both/other", "other")
    assert all(torch.equal(again.state_dict()[name], it) for name, it in model.state_dict().items())
    model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert not (tmp_path / "one/other").exists()


def test_a_name_that_is_part_of_another(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    expected = len(get_peft_model_state_dict(model))
    for name in ("default2", "other_default", "foodefault_bar", "efaul"):
        model.add_adapter(name, config_of(load(base)))
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == expected


def test_the_model_has_the_configuration_that_is_given(base: Path, tmp_path: Path) -> None:
    model = load(base)
    config = config_of(model)
    model = get_peft_model(model, config)
    assert model.peft_config["default"] is config
    model.save_pretrained(str(tmp_path))
    model = PeftModel.from_pretrained(load(base), tmp_path, is_trainable=False, config=config)
    assert model.peft_config["default"] is config
    assert config.inference_mode


def test_an_adapter_is_loaded_several_times(base: Path, tmp_path: Path) -> None:
    adapted(base).save_pretrained(tmp_path)
    model: Model = PeftModel.from_pretrained(load(base), tmp_path)
    assert model.load_adapter(tmp_path, adapter_name="other").missing_keys == []
    assert model.load_adapter(tmp_path, adapter_name="third").missing_keys == []
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("other", config_of(load(base)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_narrow_formats(base: Path, dtype: torch.dtype, autocast_adapter_dtype: bool) -> None:
    model = load(base, dtype=dtype)
    model = get_peft_model(model, config_of(model), autocast_adapter_dtype=autocast_adapter_dtype)
    rows = {it.dtype for it in model.parameters() if it.requires_grad}
    assert rows == {torch.float32 if autocast_adapter_dtype else dtype}
    expected = logits(perturb(model))
    assert model.generate(input_ids=tokens(), max_new_tokens=2, do_sample=False).shape == (4, 14)
    assert torch.equal(logits(model.merge_and_unload()), expected)


def test_merging(base: Path, tmp_path: Path) -> None:
    model, plain = adapted(base), logits(load(base))
    expected = logits(model)
    assert not torch.allclose(expected, plain)
    model.merge_adapter()
    assert torch.equal(logits(model), expected)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert torch.equal(logits(model), expected)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    for safe_merge in (False, True):
        merged = copy.deepcopy(model).merge_and_unload(safe_merge=safe_merge)
        assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
        assert not hasattr(merged, "peft_config")
        merged.save_pretrained(tmp_path / str(safe_merge))
        assert torch.equal(logits(load(tmp_path / str(safe_merge))), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_merge_of_what_is_not_finite(base: Path, value: float) -> None:
    model = adapted(base)
    with torch.no_grad():
        next(it for it in model.parameters() if it.requires_grad)[0] = value
    message = "NaNs detected in the merged weights. The adapter default seems to be broken"
    with pytest.raises(WeightsError, match=message):
        model.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize("pairs", [None, OTHER_PAIRS])
def test_merging_one_of_two(base: Path, pairs: list[tuple[int, int]] | None) -> None:
    model = two_adapters(base, pairs)
    outputs = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        outputs[name] = logits(model)
    assert not torch.allclose(outputs["default"], outputs["other"])
    for name, expected in outputs.items():
        merged = copy.deepcopy(model).merge_and_unload(adapter_names=[name])
        assert torch.equal(logits(merged), expected)
    if pairs is None:
        with pytest.raises(ArgumentError, match="hold the same rows"):
            model.merge_and_unload(adapter_names=["default", "other"])
    else:
        merged = logits(model.merge_and_unload(adapter_names=["default", "other"]))
        assert not any(torch.allclose(merged, it) for it in outputs.values())


def test_adapters_of_the_same_rows_are_refused_before_anything_changes(base: Path) -> None:
    model = two_adapters(base)
    layers = [it for it in model.modules() if isinstance(it, AlpsLayer)]
    for activate in (model.base_model.set_adapter, layers[0].set_adapter):
        with pytest.raises(ArgumentError, match="default, other hold the same rows"):
            activate(["default", "other"])
        assert all(it.active_adapters == ["default"] for it in layers)


@pytest.mark.parametrize("pairs", [None, OTHER_PAIRS])
def test_a_batch_of_several_adapters(base: Path, pairs: list[tuple[int, int]] | None) -> None:
    model = two_adapters(base, pairs)
    with model.disable_adapter():
        expected = {"__base__": logits(model)}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = logits(model)
    names = ["other", "__base__", "default", "other"]
    found = logits(model, adapter_names=names)
    for place, name in enumerate(names):
        torch.testing.assert_close(found[place], expected[name][place])
    model.set_adapter("default")
    torch.testing.assert_close(logits(model, adapter_names=names), found)
    for beams in (1, 3):
        settings: Any = {"input_ids": tokens(), "num_beams": beams, "max_new_tokens": 3, "do_sample": False}
        mixed = model.generate(**settings, adapter_names=names)
        for place, name in enumerate(names):
            alone = model.generate(**settings, adapter_names=[name] * 4)
            assert torch.equal(mixed[place], alone[place])


def test_batches_of_several_adapters_are_checked(base: Path) -> None:
    model = two_adapters(base)
    with pytest.raises(ArgumentError, match="expected one for each of 4 inputs, found 1"):
        logits(model, adapter_names=["default"])
    with pytest.raises(ArgumentError, match="expected some of default, other or __base__, found another"):
        logits(model, adapter_names=["default", "another", "other", "__base__"])
    with pytest.raises(ArgumentError, match="expected a model in evaluation mode"):
        logits(model.train(), adapter_names=["default"] * 4)
    model.eval().merge_adapter()
    with pytest.raises(ArgumentError, match="expected no merged adapters, found default"):
        logits(model, adapter_names=["default"] * 4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_beam_search_repeats_only_the_decoders_sequences(tmp_path: Path) -> None:
    tiny_model("bart", torch.float32).save_pretrained(tmp_path)

    def build(component: Literal["encoder", "decoder"]) -> Model:
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
        heads = HeadSet.from_pairs([(0, 1), (1, 0)], alps.geometry(tmp_path, component=component))
        return perturb(get_peft_model(model, AlpsConfig(heads=heads, task_type="SEQ_2_SEQ_LM")).eval())

    for model in (build("encoder"), build("decoder")):
        settings: Any = {"input_ids": tokens(), "num_beams": 3, "max_new_tokens": 3, "do_sample": False}
        expected = model.generate(**settings)
        found = model.generate(**settings, adapter_names=["default"] * 4)
        assert torch.equal(found, expected)


def test_the_weighted_sum_of_adapters(base: Path) -> None:
    model = two_adapters(base, [*OTHER_PAIRS, (0, 1)])
    model.add_weighted_adapter(["default", "other"], [0.5, -1.25], "sum")
    assert model.peft_config["sum"].head_set == chosen(load(base), [(0, 1), (0, 3), (2, 5), *OTHER_PAIRS])
    expected = load(base)
    for name, layer in model.named_modules():
        if isinstance(layer, AlpsLayer):
            own = expected.get_submodule(name.removeprefix("base_model.model."))
            for adapter, weight in (("default", 0.5), ("other", -1.25)):
                if adapter not in layer.alps_rows:
                    continue
                with torch.no_grad():
                    _add_change(own.weight, layer.base_layer.weight, layer.alps_rows, adapter, layer, weight)
                    if own.bias is not None:
                        _add_change(
                            own.bias, layer.base_layer.bias, layer.alps_bias_rows, adapter, layer, weight
                        )
    model.set_adapter("sum")
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
    model.add_weighted_adapter(["default"], [1.0], "same")
    model.set_adapter("same")
    same = logits(model)
    model.set_adapter("default")
    torch.testing.assert_close(same, logits(model))


def _add_change(own: Tensor, base: Tensor, rows: Any, adapter: str, layer: AlpsLayer, weight: float) -> None:
    axis = layer.axis if own.dim() == 2 else 0
    changed = base.index_copy(axis, layer.alps_indices[adapter], rows[adapter])
    own += weight * (changed - base)


def test_weighted_sums_are_checked(base: Path) -> None:
    model = two_adapters(base)
    for adapters, weights, name, message in (
        (["default", "none"], [1.0, 1.0], "new", "expected some of default, other"),
        ([], [], "new", "expected some of default, other"),
        (["default"], [1.0, 2.0], "new", "expected different adapters with a weight each"),
        (["default", "default"], [1.0, 2.0], "new", "expected different adapters with a weight each"),
        (["default"], [1.0], "other", "expected a new name"),
    ):
        with pytest.raises(ArgumentError, match=message):
            model.add_weighted_adapter(adapters, weights, name)
    assert list(model.peft_config) == ["default", "other"]


def test_generation(base: Path) -> None:
    model = adapted(base)
    named = model.generate(input_ids=tokens(), max_new_tokens=2, do_sample=False)
    assert torch.equal(named, model.generate(tokens(), max_new_tokens=2, do_sample=False))
    embeddings = model.get_input_embeddings()(tokens())
    torch.testing.assert_close(model(inputs_embeds=embeddings).logits, logits(model))


def test_only_the_adapter_has_gradients(base: Path) -> None:
    model = adapted(base)
    loss_of(model, 0).backward()
    assert all((it.grad is not None) == ("alps_" in name) for name, it in model.named_parameters())


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_a_compiled_model(base: Path) -> None:
    model = two_adapters(base)
    expected = {}
    for name in ("other", "default"):
        model.set_adapter(name)
        expected[name] = logits(model)
    loss_of(model, 0).backward()
    gradients = {name: it.grad for name, it in model.named_parameters() if it.grad is not None}
    model.zero_grad()
    runs = torch.compile(model, backend="aot_eager")
    loss_of(runs, 0).backward()
    assert {name for name, it in model.named_parameters() if it.grad is not None} == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)
    for name, outputs in expected.items():
        model.set_adapter(name)
        torch.testing.assert_close(logits(runs), outputs)
        model.merge_adapter()
        torch.testing.assert_close(logits(runs), outputs)
        model.unmerge_adapter()
    torch._dynamo.reset()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(base: Path, use_reentrant: bool) -> None:
    model = adapted(base).train()
    torch.manual_seed(0)  # of dropout
    loss_of(model, 0).backward()
    expected = {name: it.grad for name, it in model.named_parameters() if it.requires_grad}
    for it in model.parameters():
        it.grad = None
    model.prepare_model_for_gradient_checkpointing(model)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.manual_seed(0)
    loss_of(model, 0).backward()
    for name, it in model.named_parameters():
        assert (it.grad is not None) == (name in expected)
        if name in expected:
            torch.testing.assert_close(it.grad, expected[name])


def test_a_device_map(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    model.save_pretrained(tmp_path)
    again: Model = PeftModel.from_pretrained(load(base), tmp_path, device_map={"": "cpu"})
    torch.testing.assert_close(logits(again), logits(model))


@pytest.mark.parametrize("active", [True, False])
def test_deleting(base: Path, active: bool) -> None:
    model = two_adapters(base)
    if active:
        model.set_adapter("other")
    with pytest.warns(UserWarning, match="Setting active adapter to default") if active else nullcontext():
        model.delete_adapter("other")
    assert list(model.peft_config) == model.active_adapters == ["default"]
    assert tensors_of(model, "other") == []
    with pytest.raises(ValueError, match="Adapter unknown-adapter does not exist"):
        model.delete_adapter("unknown-adapter")
    model.delete_adapter("default")
    assert model.active_adapters == []
    assert tensors_of(model, "default") == []
    torch.testing.assert_close(logits(model.base_model), logits(load(base)))


def test_deleting_modules_to_save(base: Path) -> None:
    name = {"gpt2": "ln_f", "opt": "final_layer_norm"}.get(load(base).config.model_type, "norm")
    model = adapted(base, modules_to_save=[name])
    wrappers = [it for it in model.modules() if isinstance(it, ModulesToSaveWrapper)]
    assert wrappers
    model.delete_adapter("default")
    assert all("default" not in it.modules_to_save for it in wrappers)


def test_unloading(base: Path) -> None:
    plain = load(base)
    model = adapted(base).unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert not hasattr(model, "peft_config")
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize("merged", [False, True])
def test_disabling(base: Path, merged: bool) -> None:
    model = adapted(base)
    expected = logits(model)
    if merged:
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(load(base)))
        assert torch.equal(logits(model, adapter_names=["default"] * 4), logits(load(base)))
    assert torch.equal(logits(model), expected)


def test_gradients_can_be_switched(base: Path) -> None:
    model = two_adapters(base)
    model.set_requires_grad("other")
    model.set_requires_grad("default", requires_grad=False)
    found = {name.rpartition(".")[2] for name, it in model.named_parameters() if it.requires_grad}
    assert found == {"other"}


def test_the_state_of_the_base(base: Path) -> None:
    original = {name: it.clone() for name, it in load(base).state_dict().items()}
    model = adapted(base)
    found = get_base_model_state_dict(model)
    assert found.keys() == original.keys()
    assert all(torch.equal(found[name], it) for name, it in original.items())
    with torch.no_grad():
        for it in model.get_base_model().parameters():
            it.add_(0.1)
    result = set_base_model_state_dict(model, original, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert all(torch.equal(it, original[name]) for name, it in get_base_model_state_dict(model).items())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_what_is_not_there_is_refused(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    assert not model.supports_lora_conversion()
    model.save_pretrained(tmp_path)
    before = states(model)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but ALPS was passed"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
    with_lora = get_peft_model(load(base), LoraConfig(target_modules="all-linear"))
    before_lora = states(with_lora)
    with pytest.raises(ValueError, match="Incompatible PEFT types found: LORA and ALPS"):
        hotswap_adapter(with_lora, str(tmp_path), adapter_name="default")
    for it, state in ((model, before), (with_lora, before_lora)):
        assert all(torch.equal(tensor, state[name]) for name, tensor in it.state_dict().items())
    with pytest.raises(TypeError, match="runtime_config"):
        config_of(load(base), runtime_config=None)
