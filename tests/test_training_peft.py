"""Adapters of PEFT that hold the rows of selected heads."""

import copy
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from accelerate import dispatch_model
from markdown_it import MarkdownIt
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    WavLMConfig,
    WavLMForCTC,
)

import alps
from alps import AlpsError, ArgumentError, CheckpointError, HeadSet, PairError, WeightsError
from alps.training import attention, quantised
from alps.training.peft.layer import AlpsLayer
from alps.training.peft.model_card import describe
from support.training import (
    Model,
    TokenDataset,
    chosen,
    loss_of,
    masks,
    run_trainer,
    states,
    tiny_model,
    tokens,
    train,
    trainable,
)

pytestmark = [
    # The data loader of torch says so on every machine without an accelerator.
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    # PEFT still asks what transformers deprecates.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

OTHER_PAIRS = [(1, 0), (2, 1)]
"""Heads none of which shares a key/value group with `PAIRS`."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A saved base model in bfloat16."""
    model = tiny_model("qwen2", torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(folder: Path) -> Model:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def adapted(model: Model, pairs: list[tuple[int, int]] | None = None, **settings: Any) -> Model:
    config = alps.AlpsConfig(heads=chosen(model, pairs), task_type="CAUSAL_LM", **settings)
    return get_peft_model(model, config)


def trained(folder: Path, pairs: list[tuple[int, int]] | None = None) -> Model:
    model = adapted(load(folder), pairs)
    train(model, torch.optim.AdamW(trainable(model), lr=1e-2), 2)
    return model.eval()


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=tokens()).logits
    return result


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "bert"])
def test_training_an_adapter_is_training_the_restricted_model(model_type: str) -> None:
    restricted, model = tiny_model(model_type), tiny_model(model_type)
    mask, before = masks(model, chosen(model)), states(model)
    alps.restrict(restricted, chosen(restricted), others="freeze")
    model = get_peft_model(model, alps.AlpsConfig(heads=chosen(model)))
    for it in (restricted, model):
        train(it, torch.optim.AdamW(trainable(it), lr=1e-3, weight_decay=0.1), 5)
    assert sum(it.numel() for it in trainable(model)) == int(sum(it.sum() for it in mask.values()))
    merged = model.merge_and_unload()
    for name, expected in restricted.state_dict().items():
        assert torch.equal(merged.state_dict()[name], expected), name
        if name in mask:
            assert torch.equal(expected[~mask[name]], before[name][~mask[name]])


def test_a_saved_adapter_holds_the_rows_and_nothing_else(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {name.rpartition(".")[2] for name in saved} == {"alps_rows", "alps_bias_rows", "alps_indices"}
    assert sum(it.numel() for name, it in saved.items() if name.endswith("rows")) == sum(
        it.numel() for it in trainable(model)
    )
    assert all(it.dtype == torch.float32 for name, it in saved.items() if name.endswith("rows"))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["peft_type"] == "ALPS"
    assert HeadSet.from_json(json.dumps(config["heads"])) == chosen(load(base))
    assert len(config["fingerprint"]) == 64


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_saved_adapter_loads_to_the_bit(base: Path, tmp_path: Path, low_memory: bool) -> None:
    model = trained(base)
    expected = logits(model)
    assert not torch.equal(expected, logits(load(base)))
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(base), tmp_path / "adapter", low_cpu_mem_usage=low_memory)
    assert torch.equal(logits(again), expected)
    assert not trainable(again)
    rows = {name: it for name, it in model.named_parameters() if "rows" in name}
    assert all(torch.equal(it, rows[name]) for name, it in again.named_parameters() if "rows" in name)
    automatic = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype="auto")
    assert torch.equal(logits(automatic), expected)
    inside = load(base)
    inside.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(inside), expected)
    wide = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(wide, tmp_path / "adapter")  # the same base in a wider format


LOADERS = {
    "PeftModel": "model = load(base); PeftModel.from_pretrained(model, adapter)",
    "AutoPeftModel": "AutoPeftModelForCausalLM.from_pretrained(adapter)",
    "load_adapter": "load(base).load_adapter(adapter)",
}


@pytest.mark.parametrize(
    "imports", ["import alps, peft", "import peft, alps", "import transformers, alps, peft"]
)
def test_a_new_process_needs_one_import(imports: str, base: Path, tmp_path: Path) -> None:
    trained(base).save_pretrained(tmp_path / "adapter")
    code = [
        f"{imports}, sys",
        "base, adapter = sys.argv[1:]",
        "from peft import PeftModel, AutoPeftModelForCausalLM",
        "from transformers import AutoModelForCausalLM",
        "load = AutoModelForCausalLM.from_pretrained",
        *LOADERS.values(),
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(code), str(base), str(tmp_path / "adapter")],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_transformers_alone_loads_an_adapter_after_alps(base: Path, tmp_path: Path) -> None:
    trained(base).save_pretrained(tmp_path / "adapter")
    code = (
        "import sys, alps\nassert 'torch' not in sys.modules\n"
        "from transformers import AutoModelForCausalLM as Auto\n"
        "Auto.from_pretrained(sys.argv[1]).load_adapter(sys.argv[2])\n"
    )
    arguments = [sys.executable, "-c", code, str(base), str(tmp_path / "adapter")]
    run = subprocess.run(arguments, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_model_card_says_what_the_adapter_is(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    for _ in range(2):  # saving again replaces the section
        model.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter/README.md").read_text()
    assert card.startswith("---\n")
    assert card.count("## An adapter of attention heads") == 1
    assert "import alps" in card
    assert f"of `{base}`" in card
    for line in ("| 0 | 1, 3 |", "| 2 | 5 |"):
        assert line in card


@pytest.mark.parametrize(
    "name",
    ["a\n---\nlicense: mit", "a`b", "<script>", "<!-- /alps --> left over", "# title\n\n* item", "[x](y)"],
)
def test_the_name_of_a_base_has_no_meaning_in_the_card(name: str, base: Path, tmp_path: Path) -> None:
    heads = trained(base).peft_config["default"].head_set
    for _ in range(2):
        describe(tmp_path, heads, name)
    card = (tmp_path / "README.md").read_text()
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    found = re.search(r" of <code>(.*?)</code>. To load it:</p>", shown)
    assert found is not None
    assert html.unescape(found[1]) == name.replace("\n", "\\n")
    assert shown.count("<!--") == 2
    assert shown.rstrip().endswith("<!-- /alps -->")


def test_a_card_that_is_no_text_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff")
    with pytest.raises(alps.CheckpointError, match="expected text in UTF-8"):
        describe(tmp_path, trained(base).peft_config["default"].head_set, None)


FORMATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_training", FORMATS)
@pytest.mark.parametrize("later", FORMATS)
def test_the_same_base_in_another_format(
    stored: torch.dtype, in_training: torch.dtype, later: torch.dtype, tmp_path: Path
) -> None:
    tiny_model("qwen2", stored).save_pretrained(tmp_path / "base")

    def loaded(dtype: torch.dtype) -> Model:
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)

    adapted(loaded(in_training)).save_pretrained(tmp_path / "adapter")
    narrow = {torch.float16, torch.bfloat16}
    if stored not in (in_training, later) and {in_training, later} == narrow:
        # Rounded in two ways, which cannot be compared.
        with pytest.raises(PairError, match=r"trained over weights in .*float16, and these are in .*float16"):
            PeftModel.from_pretrained(loaded(later), tmp_path / "adapter")
        config = alps.AlpsConfig.from_pretrained(str(tmp_path / "adapter"))
        config.check_base = False
        PeftModel.from_pretrained(loaded(later), tmp_path / "adapter", config=config)
        return
    PeftModel.from_pretrained(loaded(later), tmp_path / "adapter")
    other = loaded(later)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight[0, 0] += 0.5
    with pytest.raises(PairError, match="another base"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")


def test_a_fingerprint_of_before_is_read(base: Path, tmp_path: Path) -> None:
    trained(base).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    config = json.loads(file.read_text())
    del config["fingerprints"], config["check_base"]
    file.write_text(json.dumps(config))
    PeftModel.from_pretrained(load(base), tmp_path / "adapter")


def test_what_peft_expects_of_a_layer_and_a_configuration(base: Path, tmp_path: Path) -> None:
    model = load(base)
    config = alps.AlpsConfig(heads=chosen(model))
    narrow: Model = get_peft_model(model, config, autocast_adapter_dtype=False)
    assert narrow.peft_config["default"] is config
    layer = narrow.get_submodule("base_model.model.model.layers.0.self_attn.k_proj")
    assert (layer.in_features, layer.out_features) == (48, 16)
    assert layer.alps_rows["default"].dtype == torch.bfloat16
    assert torch.equal(logits(narrow), logits(load(base)))
    with torch.no_grad():
        layer.alps_rows["default"].fill_(torch.inf)
    with pytest.raises(ValueError, match="expected finite rows"):
        narrow.merge_adapter(safe_merge=True)


def reference_of_overwritten_rows(model: Model, config: Any) -> None:
    """Checks the outputs and the gradients of an adapter over any base against weights with the rows in place."""
    plain = copy.deepcopy(model)
    quantised.keep_order(
        plain
    )  # bitsandbytes fails to order weights of these sizes for evaluation on some CPUs
    tuned: Model = get_peft_model(model, config)
    layers = {name: it for name, it in tuned.named_modules() if isinstance(it, AlpsLayer)}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers.values():
            rows = layer.alps_rows["default"]
            rows.add_(0.1 * torch.randn(rows.shape, generator=generator))
    for name, layer in layers.items():
        weight = quantised.float_weight(layer.base_layer).detach().float().clone()
        weight[layer.alps_indices["default"]] = layer.alps_rows["default"].detach().float()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.base_layer.bias is not None)
        linear.weight = nn.Parameter(weight)
        if layer.base_layer.bias is not None:
            linear.bias = nn.Parameter(layer.base_layer.bias.detach().float())
        plain.set_submodule(name.removeprefix("base_model.model."), linear)
    for it in (plain, tuned):
        loss_of(it, 0).backward()
    assert (logits(tuned) - logits(plain)).abs().max() < 2e-2 * logits(plain).abs().max()
    for name, layer in layers.items():
        expected = plain.get_submodule(name.removeprefix("base_model.model.")).weight.grad
        expected = expected[layer.alps_indices["default"]]
        found = layer.alps_rows["default"].grad
        assert (found - expected).abs().max() < 5e-2 * expected.abs().max(), name


def test_a_base_with_hooks(base: Path) -> None:
    model = dispatch_model(load(base).float(), {"": "cpu"}, force_hooks=True)
    reference_of_overwritten_rows(model, alps.AlpsConfig(heads=chosen(model)))


def test_a_linear_of_its_own_class() -> None:
    model = tiny_model("falcon", torch.float32)
    reference_of_overwritten_rows(model, alps.AlpsConfig(heads=chosen(model)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_base_quantised_by_bitsandbytes(bits: str, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    heads = chosen(load(base))
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**{bits: True}), dtype=torch.float32
    )
    if bits == "load_in_4bit":
        reference_of_overwritten_rows(model, alps.AlpsConfig(heads=heads))
    else:  # in evaluation mode, these products round the inputs to 8 bits
        get_peft_model(model, alps.AlpsConfig(heads=heads))
    layer: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
    with pytest.raises(alps.ModelError, match="found quantised ones, into which no rows can be merged"):
        layer.merge()


def test_packed_weights_that_are_offloaded_are_refused() -> None:
    module: Any = pytest.importorskip("bitsandbytes").nn.Linear4bit(8, 8, bias=False)
    assert attention.check_projection("q_proj", module, 0) is module
    vars(module)["_hf_hook"] = SimpleNamespace(offload=True)
    with pytest.raises(alps.ModelError, match="expected a weight in memory, found one that accelerate loads"):
        attention.check_projection("q_proj", module, 0)


def test_adapters_of_the_same_rows_are_merged_one_after_the_other(base: Path) -> None:
    model = trained(base)
    plain = states(model.unload())
    model = trained(base)
    model.add_adapter("other", alps.AlpsConfig(heads=chosen(load(base))))
    model.set_adapter("other")
    other = logits(model)
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="Already following adapters were merged default"):
        model.merge_adapter(["other"])
    assert torch.equal(logits(model), other)
    model.unmerge_adapter()
    assert all(torch.equal(it, plain[name]) for name, it in model.unload().state_dict().items())


def test_code_that_reads_the_weight_of_a_projection_trains_the_rows() -> None:
    sizes: Any = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "vocab_size": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    whole = WavLMForCTC(WavLMConfig(**sizes)).eval()
    model: Model = get_peft_model(
        copy.deepcopy(whole), alps.AlpsConfig(heads=chosen(whole, [(0, 1), (1, 2)]))
    ).eval()
    inputs = torch.randn(2, 400)
    for it in (whole, model):
        it(inputs).logits.square().sum().backward()
    for name, layer in model.named_modules():
        if isinstance(layer, AlpsLayer) and "default" in layer.alps_rows:
            expected = whole.get_submodule(name.removeprefix("base_model.model.")).weight.grad
            assert expected is not None
            found = layer.alps_rows["default"].grad
            torch.testing.assert_close(found, expected[layer.alps_indices["default"]], rtol=1e-4, atol=1e-5)


def test_merging_and_unmerging_are_exact(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    before, expected, plain = states(model), logits(model), logits(load(base))
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        assert torch.equal(logits(model), expected)
        model.unmerge_adapter()
        assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), expected)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), expected)
    unloaded = trained(base).unload()
    assert torch.equal(logits(unloaded), plain)
    assert not any(isinstance(module, AlpsLayer) for module in unloaded.modules())


def test_a_merge_that_is_not_finite_is_refused(base: Path) -> None:
    model = trained(base)
    before = states(model.unload())
    model = adapted(load(base))
    with torch.no_grad():
        trainable(model)[0].fill_(torch.nan)
    with pytest.raises(WeightsError, match="expected finite rows"):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(it, before[name]) for name, it in model.unload().state_dict().items())


def test_several_adapters(base: Path, tmp_path: Path) -> None:
    first, second = trained(base), trained(base, OTHER_PAIRS)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model: Model = PeftModel.from_pretrained(load(base), tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    assert torch.equal(logits(model), logits(first))
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(second))
    model.base_model.set_adapter(["first", "second"])
    both = logits(model)
    assert not torch.equal(both, logits(first))
    model.merge_adapter(["first", "second"])
    assert torch.equal(logits(model), both)
    model.unmerge_adapter()
    model.set_adapter("second")
    model.delete_adapter("first")
    assert torch.equal(logits(model), logits(second))
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again/second/adapter_model.safetensors")
    for name, expected in load_file(tmp_path / "second/adapter_model.safetensors").items():
        assert torch.equal(again[name], expected)


def test_adapters_of_the_same_rows_cannot_both_be_active(base: Path) -> None:
    model = trained(base)
    model.add_adapter("other", alps.AlpsConfig(heads=chosen(load(base))))
    with pytest.raises(ArgumentError, match="default, other hold the same rows"):
        model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ArgumentError, match="hold the same rows"):
        model.merge_adapter(["default", "other"])


def assert_untouched(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], it) for name, it in before.items())
    assert not any(isinstance(module, AlpsLayer) for module in model.modules())


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    trained(base).save_pretrained(tmp_path / "adapter")
    model = load(base)
    with torch.no_grad():  # a row that does not train
        model.model.layers[1].self_attn.q_proj.weight[0, 0] += 1
    before = states(model)
    with pytest.raises(
        PairError, match=r"another base, or its heads .*: expected query, key and value weights"
    ):
        PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert_untouched(model, before)


def test_rows_of_other_heads_are_refused(base: Path, tmp_path: Path) -> None:
    trained(base).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("alps_indices"))
    save_file({**tensors, name: tensors[name] + 1}, file)
    with pytest.raises(CheckpointError, match=r"rows of the heads in its configuration, found \d+ others"):
        PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="in its configuration, found none"):
        PeftModel.from_pretrained(load(base), tmp_path / "adapter")


def test_unsuitable_models_are_refused(base: Path) -> None:
    heads = chosen(load(base))
    restricted = load(base)
    alps.restrict(restricted, heads)
    with pytest.raises(ArgumentError, match="restricted already"):
        get_peft_model(restricted, alps.AlpsConfig(heads=heads))
    llama = tiny_model("llama", torch.bfloat16)
    before = states(llama)
    with pytest.raises(ArgumentError, match="model_type qwen2 and llama"):
        get_peft_model(llama, alps.AlpsConfig(heads=heads))
    assert_untouched(llama, before)
    merged = trained(base)
    merged.merge_adapter()
    with pytest.raises(ArgumentError, match="unmerge them first"):
        merged.add_adapter("other", alps.AlpsConfig(heads=heads))


def test_the_configuration(base: Path, tmp_path: Path) -> None:
    heads = chosen(load(base))
    heads.save(tmp_path / "heads.json")
    for given in (heads, tmp_path / "heads.json", str(tmp_path / "heads.json"), json.loads(heads.to_json())):
        assert alps.AlpsConfig(heads=given).head_set == heads
    for wrong in (None, [(0, 0)]):
        with pytest.raises(ArgumentError, match=r"expected an alps.HeadSet or the path of one"):
            alps.AlpsConfig(heads=wrong)
    with pytest.raises(ArgumentError, match="expected one head at least"):
        alps.AlpsConfig(heads=heads - heads)
    with pytest.raises(AlpsError, match="format: expected"):
        alps.AlpsConfig(heads={})


def test_one_configuration_serves_several_bases(base: Path, tmp_path: Path) -> None:
    config = alps.AlpsConfig(heads=chosen(load(base)))
    first: Any = get_peft_model(load(base), config)
    model = load(base)
    model.model.layers[0].self_attn.q_proj.weight.data.neg_()
    second: Any = get_peft_model(model, config)
    fingerprints = {it.peft_config["default"].fingerprint for it in (first, second)}
    assert len(fingerprints - {None}) == 2
    first.save_pretrained(tmp_path / "adapter")
    PeftModel.from_pretrained(load(base), tmp_path / "adapter")


def test_an_adapter_of_more_than_ten_layers_loads(tmp_path: Path) -> None:
    """PEFT sorts the layers in its file as text."""
    sizes: Any = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 64, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=12, num_key_value_heads=2, **sizes))
    model.save_pretrained(tmp_path / "base")
    heads = chosen(model, [(2, 0), (10, 3)])
    get_peft_model(model, alps.AlpsConfig(heads=heads)).save_pretrained(str(tmp_path / "adapter"))
    again: Any = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    assert again.peft_config["default"].head_set == heads


def test_other_heads_in_the_configuration_are_refused(base: Path, tmp_path: Path) -> None:
    trained(base).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    config = json.loads(file.read_text())
    config["heads"]["heads"]["0"] = [0]
    file.write_text(json.dumps(config))
    model = load(base)
    before = states(model)
    with pytest.raises(PairError, match="its heads are not those that it was trained with"):
        PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert_untouched(model, before)


def test_modules_to_save_train_with_the_heads(base: Path, tmp_path: Path) -> None:
    model = adapted(load(base), modules_to_save=["lm_head"])
    train(model, torch.optim.AdamW(trainable(model), lr=1e-2), 2)
    model.eval().save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))


def test_the_trainer_resumes_to_the_same_bits(base: Path, tmp_path: Path) -> None:
    whole = adapted(load(base))
    run_trainer(whole, tmp_path / "whole", 6)
    again = adapted(load(base))
    run_trainer(again, tmp_path / "again", 6, tmp_path / "whole/checkpoint-3")
    expected = states(whole)
    assert all(torch.equal(it, expected[name]) for name, it in again.state_dict().items())


def test_lora_as_the_paper_compares_it(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(load(base), config)
    loss_of(model, 0).backward()
    assert all("lora_" in name for name, it in model.named_parameters() if it.requires_grad)
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[])
    Trainer(model=model, args=arguments, train_dataset=TokenDataset()).train()


def test_registering_twice_does_nothing() -> None:
    from alps.training.peft.model import register

    register()
    assert peft.PeftType("ALPS") is peft.PeftType.ALPS  # type: ignore[attr-defined]
