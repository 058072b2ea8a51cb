"""A projection of which only some rows train."""

import copy
import io
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from alps.training.projection import RestrictedProjection, restrict_rows

IN, OUT = 10, 12
INDICES = torch.tensor([0, 1, 5, 6, 7, 11])


def plain(axis: int = 0, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Linear | Conv1D:
    torch.manual_seed(0)
    module: nn.Linear | Conv1D
    if axis == 0:
        module = nn.Linear(IN, OUT, bias=bias)
    else:
        module = Conv1D(OUT, IN)
        nn.init.normal_(module.bias)
    return module.to(dtype)


def restricted(module: nn.Linear | Conv1D, indices: Tensor = INDICES) -> RestrictedProjection:
    projection = restrict_rows(copy.deepcopy(module), indices, int(isinstance(module, Conv1D)))
    projection.freeze()
    return projection


def inputs(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 4, IN)) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1), requires_grad=True)


LAYOUTS = pytest.mark.parametrize(("axis", "bias"), [(0, True), (0, False), (1, True)])


@LAYOUTS
@pytest.mark.parametrize("shape", [(IN,), (5, IN), (2, 3, 4, IN), (0, IN)])
def test_outputs_and_gradients_are_those_of_the_whole(axis: int, bias: bool, shape: tuple[int, ...]) -> None:
    module = plain(axis, bias)
    projection = restricted(module)
    x, y = inputs(shape=shape), inputs(shape=shape)
    expected, found = module(x), projection(y)
    assert torch.equal(expected, found)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-12, atol=1e-13)
    assert projection.rows is not None
    whole = module.get_parameter("weight").grad
    assert whole is not None
    torch.testing.assert_close(
        projection.rows.grad, whole.index_select(axis, INDICES), rtol=1e-12, atol=1e-13
    )
    if bias:
        assert projection.bias_rows is not None
        of_bias = module.get_parameter("bias").grad
        assert of_bias is not None
        torch.testing.assert_close(projection.bias_rows.grad, of_bias[INDICES], rtol=1e-12, atol=1e-13)
    assert projection.get_parameter("weight").grad is None


@LAYOUTS
def test_numerical_gradients(axis: int, bias: bool) -> None:
    projection = restricted(plain(axis, bias))
    names = ["rows", "bias_rows"] if bias else ["rows"]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(projection, dict(zip(names, values, strict=True)), (x,))
        return result

    values = [getattr(projection, name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, (inputs(shape=(3, IN)), *values))


def test_a_second_derivative_is_refused() -> None:
    projection, x = restricted(plain()), inputs()
    (first,) = torch.autograd.grad(projection(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_frozen_rows_stay_frozen_after_requires_grad() -> None:
    projection = restricted(plain()).requires_grad_(True)
    projection(inputs()).sum().backward()
    assert projection.get_parameter("weight").grad is None
    assert projection.bias is not None
    assert projection.bias.grad is None


def test_no_rows_no_gradients() -> None:
    projection, x = restricted(plain(), torch.tensor([], dtype=torch.int64)), inputs()
    assert dict(projection.named_parameters()).keys() == {"weight", "bias"}
    output = projection.requires_grad_(True)(x)
    assert torch.equal(output, plain()(x))
    output.sum().backward()
    assert x.grad is not None
    assert projection.get_parameter("weight").grad is None


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_autocast(axis: int, base: torch.dtype) -> None:
    module = plain(axis, dtype=base)
    projection, x = restricted(module), inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = module(x), projection(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(expected, found)
    found.float().sum().backward()
    assert projection.rows is not None
    assert projection.rows.grad is not None
    assert projection.rows.grad.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize(("axis", "backend"), [(0, "inductor"), (0, "aot_eager"), (1, "aot_eager")])
def test_compiled(axis: int, backend: str) -> None:
    projection = restricted(plain(axis, dtype=torch.float32))
    again = copy.deepcopy(projection)
    x, y = inputs(torch.float32), inputs(torch.float32)
    with warnings.catch_warnings():
        # torch's own compiler uses what Python deprecates; nothing here can help it.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        compiled = torch.compile(again, backend=backend, fullgraph=True)
        projection(x).square().sum().backward()
        compiled(y).square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    for (name, mine), (_, theirs) in zip(
        projection.named_parameters(), again.named_parameters(), strict=True
    ):
        assert (mine.grad is None) == (theirs.grad is None), name
        torch.testing.assert_close(theirs.grad, mine.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    projection = restricted(plain())
    again, x = copy.deepcopy(projection), inputs()
    projection(x).square().sum().backward()
    checkpoint(again, x, use_reentrant=reentrant).square().sum().backward()
    assert projection.rows is not None
    assert again.rows is not None
    assert projection.rows.grad is not None
    assert torch.equal(projection.rows.grad, again.rows.grad)  # type: ignore[arg-type]


def test_a_step_between_forward_and_backward_is_an_error() -> None:
    projection = restricted(plain())
    output = projection(inputs())
    assert projection.rows is not None
    with torch.no_grad():
        projection.rows.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_copy_is_independent() -> None:
    projection = restricted(plain())
    again = copy.deepcopy(projection)
    assert again.rows is not None
    with torch.no_grad():
        again.rows.zero_()
    assert projection.rows is not None
    assert bool(projection.rows.any())
    buffer = io.BytesIO()
    torch.save(projection, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(inputs()), projection(inputs()))


@LAYOUTS
def test_the_state_is_that_of_the_plain_module(axis: int, bias: bool) -> None:
    module = plain(axis, bias)
    projection = restricted(module)
    with torch.no_grad():
        for rows, _ in projection.row_parameters():
            rows.add_(1)
    state = projection.state_dict()
    assert list(state) == list(module.state_dict())
    module.load_state_dict(state)
    x = inputs()
    assert torch.equal(module(x), projection(x))
    released = projection.release()
    assert type(released) is type(module)
    assert torch.equal(released(x), module(x))


def test_rows_are_loaded_from_the_weight_if_there_is_one() -> None:
    module = plain()
    projection = restricted(module)
    state = {**module.state_dict(), "rows": torch.zeros(len(INDICES), IN)}
    state["weight"] = state["weight"] + 1
    projection.load_state_dict(state)
    assert projection.rows is not None
    assert torch.equal(projection.rows, state["weight"][INDICES])


def test_a_part_of_the_state() -> None:
    projection = restricted(plain())
    assert projection.load_state_dict({}, strict=False).missing_keys == ["weight", "bias"]
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        projection.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(OUT)})
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        projection.load_state_dict({"weight": projection.weight, "bias": torch.zeros(2)})


def test_weights_that_are_loaded_later() -> None:
    with torch.device("meta"):
        projection = restricted(nn.Linear(IN, OUT))
    state = plain(dtype=torch.bfloat16).state_dict()
    projection.load_state_dict(state, assign=True)
    assert projection.rows is not None
    assert projection.rows.dtype == torch.float32
    assert torch.equal(projection.rows, state["weight"][INDICES].float())
    assert projection(inputs(torch.bfloat16)).isfinite().all()

    with torch.device("meta"):
        projection = restricted(nn.Linear(IN, OUT))
    projection.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(projection.rows, state["weight"][INDICES].float())  # type: ignore[arg-type]
    assert torch.equal(projection.indices, INDICES)


def test_rows_stay_in_float32() -> None:
    projection = restricted(plain(dtype=torch.bfloat16))
    assert projection.rows is not None
    assert projection.rows.dtype == torch.float32
    projection(inputs(torch.bfloat16)).sum().backward()
    value = torch.full_like(projection.rows, 1 + 2**-12)
    with torch.no_grad():
        projection.rows.copy_(value)
    for module in (projection.to(torch.bfloat16), projection.bfloat16(), projection.half()):
        assert module.weight.dtype != torch.float32
        assert module.rows is not None
        assert torch.equal(module.rows, value)
        assert module.rows.grad is not None
        assert module.rows.grad.dtype == torch.float32
    assert projection.double().rows.dtype == torch.float64  # type: ignore[union-attr]


@pytest.mark.parametrize("axis", [0, 1])
def test_an_eighth_of_the_rows_costs_an_eighth_of_the_weight_gradient(axis: int) -> None:
    # Time is measured by benches/training.py; this counts, and so holds on a busy machine too.
    size, count = 64, 128
    indices = torch.arange(0, size // 8)
    linear = nn.Linear(size, size) if axis == 0 else Conv1D(size, size)
    projection = restrict_rows(linear, indices, axis)
    projection.freeze()
    with FlopCounterMode(display=False) as counter:
        projection(torch.randn(count, size, requires_grad=True)).sum().backward()
    product = 2 * count * size * size
    assert counter.get_total_flops() == 2 * product + product // 8
