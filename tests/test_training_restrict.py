"""Models of which only the selected heads train."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload, dispatch_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import alps
from alps import AlpsError, ArgumentError, Geometry, HeadScores, HeadSet, ModelError
from alps.training import attention
from alps.training.projection import restrict_rows
from support.tiny_models import LANGUAGE_MODELS, tiny
from support.training import (
    PAIRS,
    MakeOptimizer,
    Model,
    chosen,
    loss_of,
    masks,
    projections,
    states,
    tiny_model,
    tokens,
    train,
    trainable,
)

# AdamW divides a gradient by its size plus eps. With the default of 1e-8 it enlarges the rounding noise of gradients
# near 0, which changes with the alignment of memory, to 3e-11 of a weight; with 1e-6 both ways agree to 1e-16.
ADAMW: MakeOptimizer = lambda parameters: torch.optim.AdamW(  # noqa: E731
    parameters, lr=1e-3, weight_decay=0.1, eps=1e-6
)
SGD: MakeOptimizer = lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)  # noqa: E731
TORCH_ADAFACTOR: MakeOptimizer = lambda parameters: torch.optim.Adafactor(parameters, lr=1e-3)  # noqa: E731
ADAFACTOR: MakeOptimizer = lambda parameters: transformers.Adafactor(  # noqa: E731
    parameters, lr=1e-3, relative_step=False, weight_decay=0.1
)

OF_EACH_KIND = pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "bert", "opt"])
"""No biases; biases with groups; transposed and fused; an encoder; biases without groups."""


def assert_only_chosen_moved(before: dict[str, Any], after: dict[str, Any], mask: dict[str, Any]) -> None:
    for name, entries in mask.items():
        moved = before[name] != after[name]
        assert not moved[~entries].any(), name
        if entries.any() and not name.endswith(("k_proj.bias", "key.bias")):  # those have no effect
            assert moved[entries].float().mean() > 0.6, name


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_every_known_type(model_type: str) -> None:
    model, _ = tiny(model_type)
    heads = chosen(model)
    before, state = {name: type(module) for name, module in model.named_modules()}, states(model)
    with torch.no_grad():
        expected = model(input_ids=tokens())[0]
        report = alps.restrict(model, heads)
        assert torch.equal(model(input_ids=tokens())[0], expected)
    counted = heads.report
    in_heads = sum(report.trainable[role] for role in ("query", "key", "value"))
    assert in_heads == counted.trainable_parameters
    weights = [projection.rows for projection in projections(model) if projection.rows is not None]
    assert sum(rows.numel() for rows in weights) == counted.trainable_parameters
    assert list(model.state_dict()) == list(state)
    with torch.no_grad():
        for rows in weights:
            rows.add_(1)
        moved = model(input_ids=tokens())[0]
        assert not torch.equal(moved, expected)
        alps.release(model)
        assert torch.equal(model(input_ids=tokens())[0], moved)
    assert {name: type(module) for name, module in model.named_modules()} == before
    differing = sum(int((tensor != state[name]).sum()) for name, tensor in model.state_dict().items())
    assert differing == counted.trainable_parameters


def test_a_notebook_shows_what_trains() -> None:
    model, _ = tiny("llama")
    heads = chosen(model)
    restriction = alps.restrict(model, heads)
    html = restriction._repr_html_()
    assert f"<td>query</td><td>{restriction.trainable['query']:,}</td>" in html
    assert f"{100 * restriction.share:.1f} % of the parameters train" in html
    layer, (first, *_) = next(iter(restriction.heads.items()))
    assert f"<td>{layer}</td><td>{first}" in html


@OF_EACH_KIND
@pytest.mark.parametrize("make", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_selected_rows_train_as_with_masked_full_gradients(model_type: str, make: MakeOptimizer) -> None:
    reference, model = tiny_model(model_type), tiny_model(model_type)
    heads = chosen(model)
    mask, origin = masks(reference, heads), states(reference)
    optimizer = make(trainable(reference))
    for step in range(10):
        optimizer.zero_grad()
        loss_of(reference, step).backward()
        parameters = dict(reference.named_parameters())
        for name, entries in mask.items():
            parameters[name].grad.mul_(entries)
        optimizer.step()
        with torch.no_grad():  # weight decay knows of no mask
            for name, entries in mask.items():
                parameters[name].copy_(torch.where(entries, parameters[name], origin[name]))

    alps.restrict(model, heads)
    train(model, make(trainable(model)), 10)
    after = states(model)
    assert_only_chosen_moved(origin, after, mask)
    expected = states(reference)
    for name in mask:
        # The bias of keys has no effect; its gradient is noise, which AdamW makes large.
        if not (name.endswith(("k_proj.bias", "key.bias", "c_attn.bias")) and make is ADAMW):
            torch.testing.assert_close(after[name], expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model_type", "make"),
    [("llama", ADAMW), ("llama", SGD), ("llama", ADAFACTOR), ("llama", TORCH_ADAFACTOR), ("gpt2", ADAMW)],
)
def test_frozen_rows_are_the_same_bits_after_200_steps(model_type: str, make: MakeOptimizer) -> None:
    model = tiny_model(model_type, torch.float32)
    heads, before = chosen(model), states(model)
    mask = masks(model, heads)
    alps.restrict(model, heads)
    train(model, make(list(model.parameters())), 200)
    assert_only_chosen_moved(before, states(model), mask)
    alps.release(model)
    assert_only_chosen_moved(before, states(model), mask)


@pytest.mark.parametrize("make", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_an_optimizer_of_unrestricted_training_moves_no_frozen_row(make: MakeOptimizer) -> None:
    model = tiny_model(dtype=torch.float32)
    optimizer = make(list(model.parameters()))
    train(model, optimizer, 5)
    loss_of(model, 5).backward()  # and a gradient that was not used
    saved = copy.deepcopy(optimizer.state_dict())
    heads, before = chosen(model), states(model)
    mask = masks(model, heads)
    alps.restrict(model, heads)

    ours = [parameter for projection in projections(model) for parameter, _ in projection.row_parameters()]
    resumed = make([it for it in model.parameters() if not any(it is rows for rows in ours)])
    resumed.load_state_dict(saved)
    assert any("momentum" in key or "exp_avg" in key for key in next(iter(resumed.state.values())))
    for old in (optimizer, resumed):
        old.add_param_group({"params": ours})
        train(model, old, 200)
        assert_only_chosen_moved(before, states(model), mask)


@OF_EACH_KIND
@pytest.mark.parametrize("others", ["train", "freeze"])
def test_gradients_and_optimizer_state_hold_exactly_what_trains(model_type: str, others: Any) -> None:
    model = tiny_model(model_type, torch.float32)
    heads = chosen(model)
    mask = masks(model, heads)
    outside = sum(it.numel() for name, it in model.named_parameters() if name not in mask)
    report = alps.restrict(model, heads, others=others)
    optimizer = ADAMW(trainable(model))
    loss_of(model, 0).backward()
    optimizer.step()
    used = {"train": outside, "freeze": 0}[others]
    expected = int(sum(entries.sum() for entries in mask.values())) + used
    assert sum(it.numel() for it in trainable(model)) == expected
    gradients = [it.grad for it in model.parameters() if it.grad is not None]
    idle = sum(it.numel() for it in trainable(model) if it.grad is None)  # BERT's pooler, for instance
    assert sum(it.numel() for it in gradients) + idle == expected
    moments = [it for state in optimizer.state.values() for it in state.values() if it.dim()]
    assert sum(it.numel() for it in moments) + 2 * idle == 2 * expected
    assert sum(report.trainable.values()) == expected
    whole = sum(it.numel() for it in tiny_model(model_type).parameters())
    assert sum(report.trainable.values()) + sum(report.frozen.values()) == whole


def test_the_report() -> None:
    model = tiny_model("qwen2")
    report = alps.restrict(model, chosen(model), others="freeze")
    assert report.heads == {0: (1, 3), 2: (5,)}
    assert report.key_value_groups == {0: (0, 1), 2: (1,)}
    assert report.trainable["other"] == 0
    # Heads and groups of 8 rows, 48 wide.
    assert report.trainable == {
        "query": 3 * 8 * 48, "key": 3 * 8 * 48, "value": 3 * 8 * 48, "bias": 9 * 8, "other": 0,
    }  # fmt: skip
    text = repr(report)
    assert "layer 0: heads 1, 3; key/value groups 0, 1" in text
    assert "1,152" in text
    assert "layer 1" not in text


def test_others() -> None:
    model = tiny_model()
    model.lm_head.weight.requires_grad_(False)
    before = {name: it.requires_grad for name, it in model.named_parameters()}
    for others in ("train", "freeze"):
        alps.restrict(model, chosen(model), others=others)
        for name, parameter in model.named_parameters():
            if name.endswith(".rows"):
                assert parameter.requires_grad
            elif "_proj" in name and "self_attn.o" not in name and "mlp" not in name:
                assert not parameter.requires_grad
            else:
                assert parameter.requires_grad == (before[name] and others == "train"), name
        alps.release(model)
        assert {name: it.requires_grad for name, it in model.named_parameters()} == before


def baseline(name: str, geometry: Geometry) -> HeadSet:
    if name in ("random", "layer_consistent"):
        scores = HeadScores({"wasserstein": np.zeros(geometry.shape)}, geometry)
        return scores.select(ratio=0.3, rule=name, seed=1)  # type: ignore[arg-type]
    return HeadSet.from_mask(np.full(geometry.shape, name == "full"), geometry)


@pytest.mark.parametrize("name", ["random", "layer_consistent", "empty", "full"])
def test_baselines(name: str) -> None:
    model = tiny_model(dtype=torch.float32)
    heads = baseline(name, attention.find(model).geometry)
    before, mask = states(model), masks(model, heads)
    report = alps.restrict(model, heads)
    train(model, ADAMW(trainable(model)), 5)
    after = states(model)
    assert_only_chosen_moved(before, after, mask)
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert report.trainable["query"] == len(heads) * 16 * 48
    if name == "full":
        assert report.frozen == dict.fromkeys(report.frozen, 0)
    if name == "empty":
        assert report.heads == {}
    assert list(projections(model))  # the empty set restricts too, and can be released
    alps.release(model)


def test_a_copy_of_a_model() -> None:
    model = tiny_model(dtype=torch.float32)
    alps.restrict(model, chosen(model), others="freeze")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = states(model)
        train(other, ADAMW(trainable(other)), 2)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        alps.release(other)
        assert all(parameter.requires_grad for parameter in other.parameters())
        assert list(projections(model))


def test_a_device_map() -> None:
    plain, model = tiny_model(), dispatch_model(tiny_model(), {"": "cpu"}, force_hooks=True)
    for it in (plain, model):
        alps.restrict(it, chosen(it))
        train(it, ADAMW(trainable(it)), 3)
    assert all(torch.equal(it, plain.state_dict()[name]) for name, it in model.state_dict().items())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("others", ["train", "freeze"])
# transformers itself still calls what it deprecates.
@pytest.mark.filterwarnings("ignore:.*activation_checkpointing:FutureWarning")
def test_gradient_checkpointing(reentrant: bool, others: Any) -> None:
    plain = tiny_model()
    alps.restrict(plain, chosen(plain), others=others)
    model = copy.deepcopy(plain)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for it in (plain, model):
        it.train()
        loss_of(it, 0).backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-14)


# Bad input


def other_geometry(model: Model, **changes: Any) -> HeadSet:
    geometry = attention.find(model).geometry
    fields = {**geometry.to_fields(), **changes}
    return HeadSet.from_pairs([(0, 0)], Geometry.from_fields(fields))


def with_integers(model: Model) -> Model:
    projection = model.model.layers[2].self_attn.k_proj
    projection.weight = nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    return model


def with_bytes(model: Model) -> Model:
    projection = model.model.layers[2].self_attn.k_proj
    projection.weight = nn.Parameter(projection.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return model


def partitioned(model: Model) -> Model:
    model.model.layers[2].self_attn.k_proj.weight.ds_id = 7
    return model


def offloaded(model: Model) -> Model:
    return cpu_offload(model, torch.device("cpu"))


def quantised(model: Model) -> Model:
    model.is_quantized = True
    return model


def shared(model: Model) -> Model:
    layers = model.model.layers
    layers[1].self_attn.k_proj = layers[0].self_attn.k_proj
    return model


def without_layer(model: Model) -> Model:
    del model.model.layers[2]
    return model


def renamed(model: Model) -> Model:
    model.config.__class__ = type("OtherConfig", (type(model.config),), {"model_type": "mamba"})
    return model


REFUSED: dict[str, tuple[Callable[[Model], Any], str, type[AlpsError]]] = {
    "other type": (
        lambda model: other_geometry(model, model_type="qwen2"),
        "model_type qwen2 and llama", ArgumentError,
    ),
    "other size": (lambda model: other_geometry(model, head_size=8), "head_size 8 and 16", ArgumentError),
    "more heads": (lambda model: other_geometry(model, query_heads=8), "query_heads 8 and 6", ArgumentError),
    "more layers": (lambda model: other_geometry(model, layers=[0, 1, 2, 3]), "layers 0-3 and 0-2", ArgumentError),
    "no heads at all": (lambda _: [(0, 0)], "expected an alps.HeadSet, found list", ArgumentError),
    "a missing layer": (without_layer, "model.layers.2.self_attn.q_proj.weight` is missing", ModelError),
    "int8": (with_integers, "layers.2.self_attn.k_proj.weight: expected float16.*found int8", ModelError),
    "float8": (with_bytes, "found float8_e4m3fn; quantised", ModelError),
    "quantised": (quantised, "expected weights that are floating-point numbers, found quantised", ModelError),
    "partitioned": (
        partitioned,
        "k_proj.weight: expected a whole weight, found one that DeepSpeed's ZeRO-3", ModelError,
    ),
    "offloaded": (offloaded, "q_proj.weight: expected a weight in memory, found one that accelerate loads", ModelError),
    "shared": (shared, "layers.1.self_attn.k_proj: expected a weight of its own, found that of", ModelError),
    "unknown": (renamed, "`mamba` has no heads that could be scanned", ModelError),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_leaves_the_model_unchanged(case: str) -> None:
    spoil, message, error = REFUSED[case]
    model = tiny_model()
    heads = chosen(model)
    spoiled = spoil(model)
    if not isinstance(spoiled, nn.Module):
        heads = spoiled
    before = [(name, id(it), it.requires_grad) for name, it in model.named_parameters()]
    modules = [(name, id(it)) for name, it in model.named_modules()]
    with pytest.raises(error, match=message):
        alps.restrict(model, heads, others="freeze")
    assert [(name, id(it), it.requires_grad) for name, it in model.named_parameters()] == before
    assert [(name, id(it)) for name, it in model.named_modules()] == modules


def test_a_model_that_is_restricted_already() -> None:
    model = tiny_model()
    heads = chosen(model)
    alps.restrict(model, heads)
    modules = [(name, id(it)) for name, it in model.named_modules()]
    with pytest.raises(ArgumentError, match=r"restricted already; alps.release\(model\) ends that"):
        alps.restrict(model, heads)
    assert [(name, id(it)) for name, it in model.named_modules()] == modules
    alps.release(model)
    with pytest.raises(ArgumentError, match="is not restricted"):
        alps.release(model)


def test_other_arguments() -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match='expected "train" or "freeze", found \'nothing\''):
        alps.restrict(model, chosen(model), others="nothing")  # type: ignore[arg-type]
    for wrong in (nn.Linear(2, 2), "model"):
        with pytest.raises(ArgumentError, match="expected a model of transformers"):
            alps.restrict(wrong, chosen(model))  # type: ignore[arg-type]


def test_a_fused_tensor_with_rows_one_after_the_other() -> None:
    # What the layouts of fused tensors come down to: rows from three parts of one Linear.
    torch.manual_seed(0)
    linear = nn.Linear(6, 36, dtype=torch.float64)
    indices = torch.tensor([4, 5, 14, 15, 26, 27])
    projection = restrict_rows(copy.deepcopy(linear), indices, 0)
    inputs = torch.randn(5, 6, dtype=torch.float64)
    linear(inputs).square().sum().backward()
    projection(inputs).square().sum().backward()
    assert linear.weight.grad is not None
    torch.testing.assert_close(projection.rows.grad, linear.weight.grad[indices])  # type: ignore[union-attr]


def test_transposed_modules_are_restored() -> None:
    model = tiny_model("gpt2")
    alps.restrict(model, chosen(model, PAIRS))
    alps.release(model)
    assert type(model.transformer.h[0].attn.c_attn) is Conv1D
