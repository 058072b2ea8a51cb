"""Weights that bitsandbytes has packed into 4 or 8 bits.

On CPUs with instructions for bfloat16, bitsandbytes packs 4-bit weights anew at the first pass without gradients: in another
order, with scales that are rounded to bfloat16, and multiplied by a kernel that has no gradient. Rows that are read in this
order would be wrong, and no module before such a one would train; `keep_order` restores the order that is saved.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


def is_packed(weight: Tensor) -> bool:
    """Whether bitsandbytes has packed a weight, in whatever format it stores the bits."""
    weight_of: Any = weight
    if type(weight).__name__ == "Params4bit":
        return bool(weight_of.bnb_quantized)
    return type(weight).__name__ == "Int8Params" and weight.dtype == torch.int8


def has_packed_weights(model: nn.Module) -> bool:
    """Whether bitsandbytes has packed some of a model's weights."""
    return isinstance(model, nn.Module) and any(is_packed(parameter) for parameter in model.parameters())


def entries(weight: Tensor) -> int:
    """The number of entries of a weight, also of a packed one."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else math.prod(state.shape)


def float_weight(module: nn.Module) -> Tensor:
    """The weight of a projection as floating-point numbers: [out, in] for a packed one."""
    weight: Any = module.get_parameter("weight")
    if not is_packed(weight):
        return weight  # type: ignore[no-any-return]
    from bitsandbytes import functional

    keep_order(module)
    if type(weight).__name__ == "Params4bit":
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    # bitsandbytes moves the scales from the weight to the state of the module at the first pass.
    state: Any = module.state
    scales = weight.SCB if weight.SCB is not None else state.SCB
    return functional.int8_vectorwise_dequant(weight.data, scales.to(weight.device))  # type: ignore[no-any-return]


def keep_order(module: nn.Module) -> None:
    """Restores the order of the packed weights in a module that is saved, and has bitsandbytes keep it."""
    for part in module.modules():
        weight: Any = part._parameters.get("weight")
        if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
            # bitsandbytes has no public name for it.
            from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse as inverse

            weight.data, state = inverse(weight.data, weight.quant_state)
            if (
                state.absmax.dim() == 2
            ):  # bitsandbytes 0.50 leaves the scales in the other order, unless they are nested
                state.absmax = state.absmax.T.reshape(-1).float()
            weight.quant_state = state
        if "support_avx512bf16_for_cpu" in vars(part):
            vars(part)["support_avx512bf16_for_cpu"] = False


def note_unpacked(model: nn.Module, names: list[str]) -> None:
    """Notes in the configuration of a model that modules are not packed, so that a saved checkpoint loads as it is."""
    for prefix, part in model.named_modules():
        quantiser = vars(part).get("hf_quantizer")
        if quantiser is None:
            continue
        own = {name.removeprefix(f"{prefix}.") for name in names if name.startswith(prefix)}
        for config in (quantiser.quantization_config, part.config.quantization_config):
            skipped = config.llm_int8_skip_modules or quantiser.modules_to_not_convert or []
            config.llm_int8_skip_modules = sorted({*skipped, *own})
