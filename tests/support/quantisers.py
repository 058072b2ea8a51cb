"""Quantises weights, and returns the tensors that each quantiser saves with the weights that they stand for.

A quantiser that runs on a CPU quantises and dequantises itself. The packings of GPTQ, AWQ and blocks of FP8 are
implemented here from their published definitions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from numpy.typing import NDArray
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

if sys.version_info >= (3, 11):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4 import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, dequantize

Module = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The tensors, by their names after that of the module; the weights they stand for, float32 [out, in]."""


@dataclass(frozen=True)
class Quantiser:
    """A quantised format.

    Attributes:
        quantise: Quantises float32 [out, in].
        config: Its `quantization_config`.
        scheme: Its name in the provenance of a scan.
        exact: Whether alps reads exactly the weights of the quantiser. If not, products are rounded in another order.
    """

    quantise: Callable[[torch.Tensor], Module]
    config: dict[str, Any]
    scheme: str
    exact: bool = True


def _blocks(values: torch.Tensor, block: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """Repeats the number of each block over its entries."""
    spread = values.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return spread[: shape[0], : shape[1]]


def fp8_blocks(
    weight: torch.Tensor,
    block: tuple[int, int] = (128, 128),
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_name: str = "weight_scale_inv",
    exponents: torch.dtype | None = None,
) -> Module:
    """FP8 as DeepSeek saves it; with `exponents`, the scales are powers of two stored in that format."""
    rows, columns = (-(-size // side) for size, side in zip(weight.shape, block, strict=True))
    padded = torch.zeros(rows * block[0], columns * block[1])
    padded[: weight.shape[0], : weight.shape[1]] = weight
    largest = padded.reshape(rows, block[0], columns, block[1]).abs().amax(dim=(1, 3))
    scale = largest / torch.finfo(dtype).max
    stored = scale
    if exponents is not None:
        power = scale.log2().ceil()
        scale = power.exp2()
        stored = (power + 127).to(torch.uint8).view(exponents)
    spread = _blocks(scale, block, weight.shape)
    codes = (weight / spread).to(dtype)
    if weight.shape[0] % block[0] == 0 and weight.shape[1] % block[1] == 0:
        expected = Fp8Dequantize(None)._dequantize_one(codes, stored, torch.float32)
    else:  # transformers refuses blocks that are cut off
        expected = codes.float() * spread
    return {"weight": codes, scale_name: stored}, expected


def fp8_tensor(weight: torch.Tensor, shape: tuple[int, ...] = (), scale_name: str = "weight_scale") -> Module:
    """FP8 with one scale."""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, scale_name: scale.reshape(shape)}, codes.float() * scale


def fp8_rows(weight: torch.Tensor) -> Module:
    """FP8 with a scale for each row, as FBGEMM saves it."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def _compressed(layout: str, **arguments: Any) -> Quantiser:
    """compressed-tensors compresses and decompresses."""
    arguments = {"symmetric": True} | arguments
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor: Any = BaseCompressor.get_value_from_registry(layout)

    def quantise(weight: torch.Tensor) -> Module:
        out, inputs = weight.shape
        block = {
            "tensor": (out, inputs),
            "channel": (1, inputs),
            "block": tuple(args.block_structure or ()),
        }.get(str(args.strategy), (1, args.group_size))
        grid = weight.unflatten(0, (-1, block[0])).unflatten(2, (-1, block[1]))
        highest, lowest = grid.amax(dim=(1, 3)), grid.amin(dim=(1, 3))
        largest = torch.maximum(highest.abs(), lowest.abs())
        state = {"weight": weight}
        if layout.startswith("nvfp4"):
            state["weight_global_scale"] = 448 * 6 / weight.abs().max().reshape(1)
            largest = largest / 6 * state["weight_global_scale"]
            state["weight_scale"] = largest.to(torch.float8_e4m3fn).float()
        elif args.type == "float" and args.scale_dtype is not None:
            state["weight_scale"] = (largest / (448 if args.num_bits == 8 else 6)).log2().ceil().exp2()
        elif args.type == "float":
            state["weight_scale"] = largest / 448
        elif args.symmetric:
            state["weight_scale"] = largest / (2 ** (args.num_bits - 1) - 1)
        else:
            state["weight_scale"] = (highest - lowest) / (2**args.num_bits - 1)
            zero_point = -(2 ** (args.num_bits - 1)) - (lowest / state["weight_scale"]).round()
            state["weight_zero_point"] = zero_point.to(torch.int8)
        if args.strategy == "tensor":
            state["weight_scale"] = state["weight_scale"].reshape(1)
        compressed = compressor.compress(state, scheme)
        if "weight_global_scale" in compressed:  # its own inverse rounds to bfloat16
            codes = unpack_fp4_from_uint8(compressed["weight_packed"], out, inputs, torch.float32)
            scales = compressed["weight_scale"].float()
            expected = dequantize(codes, scales, args=args, global_scale=compressed["weight_global_scale"])
        else:
            expected = compressor.decompress(dict(compressed), scheme)["weight"].float()
        return {name: tensor.detach() for name, tensor in compressed.items()}, expected

    config = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}},
    }
    names = {"int-quantized": "compressed-tensors int8", "nvfp4-pack-quantized": "NVFP4"}
    name = (names | {"mxfp4-pack-quantized": "MXFP4"}).get(
        layout, "FP8 (E4M3)" if args.type == "float" else f"compressed-tensors int{args.num_bits}"
    )
    return Quantiser(quantise, config, name)


def bitsandbytes_int8(weight: torch.Tensor) -> Module:
    """What bitsandbytes' layer saves, and its own inverse."""
    out, inputs = weight.shape
    layer = Linear8bitLt(inputs, out, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight.half()})
    state = dict(layer.to("cpu").state_dict())
    expected = torch.ops.bitsandbytes.int8_vectorwise_dequant(state["weight"], state["SCB"])
    return state, expected


def bitsandbytes_4bit(
    weight: torch.Tensor, kind: str, nested: bool, storage: torch.dtype = torch.uint8
) -> Module:
    """What bitsandbytes' layer saves, and its own inverse."""
    out, inputs = weight.shape
    layer = Linear4bit(
        inputs, out, bias=False, quant_type=kind, compress_statistics=nested, quant_storage=storage
    )
    layer.load_state_dict({"weight": weight})
    quantised: Any = layer.to("cpu").weight
    expected = dequantize_4bit(quantised.data, quantised.quant_state)
    return dict(layer.state_dict()), expected


def _pack(codes: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Packs integers down axis 0 into 32-bit words, lowest bits first, as one stream of bits."""
    stream = (codes[:, None, :] >> np.arange(bits)[None, :, None]) & 1
    places = stream.reshape(-1, 32, codes.shape[1]) << np.arange(32)[None, :, None]
    words: NDArray[np.uint32] = places.sum(axis=1).astype(np.uint32)
    return words.view(np.int32)


def _integers(
    weight: torch.Tensor, bits: int, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
    """Codes [in, out], zero points and scales [groups, out] of integers without a sign."""
    transposed = weight.numpy().T
    count = groups.max() + 1
    highest = np.stack([transposed[groups == group].max(axis=0) for group in range(count)])
    lowest = np.stack([transposed[groups == group].min(axis=0) for group in range(count)])
    scales = ((highest - lowest) / (2**bits - 1)).astype(np.float16)
    zero_points = np.clip(np.round(-lowest / scales.astype(np.float64)), 0, 2**bits - 1).astype(np.int64)
    codes = np.round(transposed / scales[groups].astype(np.float64)) + zero_points[groups]
    return np.clip(codes, 0, 2**bits - 1).astype(np.int64), zero_points, scales


def _dequantised(
    codes: NDArray[np.int64],
    zero_points: NDArray[np.int64],
    scales: NDArray[np.float16],
    groups: NDArray[np.int64],
) -> torch.Tensor:
    weights = (codes - zero_points[groups]).astype(np.float32) * scales[groups].astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(weights.T))


def gptq(weight: torch.Tensor, bits: int, group: int, less: int, order: str = "in order") -> Module:
    """GPTQ's packing; `less` is what is taken from the zero points."""
    inputs = weight.shape[1]
    groups = np.arange(inputs) // (inputs if group == -1 else group)
    if order == "shuffled":
        np.random.default_rng(0).shuffle(groups)
    codes, zero_points, scales = _integers(weight, bits, groups)
    stored_zero_points = (zero_points - less) % 2**bits
    tensors = {
        "qweight": _pack(codes, bits),
        "qzeros": _pack(stored_zero_points.T, bits).T,
        "scales": scales,
        "g_idx": groups.astype(np.int32),
    }
    if order == "absent":
        del tensors["g_idx"]
    packed = {name: torch.from_numpy(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()}
    return packed, _dequantised(codes, zero_points, scales, groups)


def awq(weight: torch.Tensor, group: int = 32) -> Module:
    """AWQ's packing for its GEMM kernel: of eight columns first the even ones, then the odd ones."""
    groups = np.arange(weight.shape[1]) // group
    codes, zero_points, scales = _integers(weight, 4, groups)

    def packed(values: NDArray[np.int64]) -> torch.Tensor:
        eights = values.reshape(values.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint32)
        words = (eights << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
        return torch.from_numpy(words.view(np.int32))

    tensors = {"qweight": packed(codes), "qzeros": packed(zero_points), "scales": torch.from_numpy(scales)}
    return tensors, _dequantised(codes, zero_points, scales, groups)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
"""The weights that the codes of 4-bit floats stand for, without the sign."""


def nvfp4_model_optimizer(weight: torch.Tensor) -> Module:
    """NVFP4 as Model Optimizer packs it: the scale of all is a factor, not a divisor."""
    grid = weight.numpy().reshape(len(weight), -1, 16)
    factor = np.abs(grid).max() / np.float32(6 * 448)
    scales = torch.from_numpy(np.abs(grid).max(axis=2) / 6 / factor).to(torch.float8_e4m3fn)
    scaled = grid / np.maximum(scales.float().numpy() * factor, 1e-30)[..., None]
    nearest = np.abs(np.abs(scaled)[..., None] - E2M1).argmin(axis=-1)
    codes = (nearest + 8 * (scaled < 0)).astype(np.uint8).reshape(len(weight), -1)
    values = E2M1[codes % 8] * np.where(codes < 8, np.float32(1), np.float32(-1))
    spread = (scales.float().numpy() * factor).repeat(16, axis=1)
    tensors = {
        "weight": torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << 4),
        "weight_scale": scales,
        "weight_scale_2": torch.tensor(factor),
        "input_scale": torch.tensor(0.01),
    }
    return tensors, torch.from_numpy(values * spread)


def mlx(weight: torch.Tensor, bits: int, group: int = 64, dtype: torch.dtype = torch.bfloat16) -> Module:
    """MLX's packing: each row is one stream of bits, a weight is code * scale + bias."""
    grid = weight.unflatten(1, (-1, group))
    lowest, highest = grid.amin(dim=2), grid.amax(dim=2)
    scales, biases = ((highest - lowest) / (2**bits - 1)).to(dtype), lowest.to(dtype)
    spread = [numbers.float().repeat_interleave(group, dim=1) for numbers in (scales, biases)]
    codes = ((weight - spread[1]) / spread[0]).round().clamp(0, 2**bits - 1)
    packed = np.ascontiguousarray(_pack(codes.numpy().astype(np.int64).T, bits).T).view(np.uint32)
    tensors = {"weight": torch.from_numpy(packed), "scales": scales, "biases": biases}
    return tensors, codes * spread[0] + spread[1]


def _mlx(bits: int) -> Quantiser:
    return Quantiser(lambda weight: mlx(weight, bits), {"group_size": 64, "bits": bits}, f"MLX int{bits}")


def _gptq(bits: int, group: int, layout: str | None, order: str = "in order") -> Quantiser:
    config: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": False}
    if layout is not None:
        config["checkpoint_format"] = layout
    less = 0 if layout == "gptq_v2" else 1
    return Quantiser(lambda weight: gptq(weight, bits, group, less, order), config, f"GPTQ int{bits}")


_DEEPSEEK = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
    "activation_scheme": "dynamic",
}
_IN_8_BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
_IN_4_BITS = {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True}
_GROUPS = {"strategy": "group", "group_size": 32}

QUANTISERS: dict[str, Quantiser] = {
    "fp8 blocks": Quantiser(fp8_blocks, _DEEPSEEK, "FP8 (E4M3)"),
    "fp8 small blocks": Quantiser(
        lambda weight: fp8_blocks(weight, (16, 64)), _DEEPSEEK | {"weight_block_size": [16, 64]}, "FP8 (E4M3)"
    ),
    "fp8 e5m2": Quantiser(
        lambda weight: fp8_blocks(weight, dtype=torch.float8_e5m2), _DEEPSEEK, "FP8 (E5M2)"
    ),
    "fp8 byte exponents": Quantiser(
        lambda weight: fp8_blocks(weight, scale_name="scale", exponents=torch.uint8), _DEEPSEEK, "FP8 (E4M3)"
    ),
    "fp8 exponents": Quantiser(
        lambda weight: fp8_blocks(weight, exponents=torch.float8_e8m0fnu), _DEEPSEEK, "FP8 (E4M3)"
    ),
    "fp8 tensor, Mistral": Quantiser(
        lambda weight: fp8_tensor(weight, scale_name="qscale_weight"),
        _DEEPSEEK | {"weight_block_size": None},
        "FP8 (E4M3)",
    ),
    "fp8 rows, FBGEMM": Quantiser(fp8_rows, {"quant_method": "fbgemm_fp8"}, "FP8 (E4M3)"),
    "bitsandbytes int8": Quantiser(bitsandbytes_int8, _IN_8_BITS, "bitsandbytes int8", exact=False),
    **{
        f"bitsandbytes {kind}{', nested' if nested else ''}": Quantiser(
            partial(bitsandbytes_4bit, kind=kind, nested=nested),
            _IN_4_BITS | {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested},
            f"bitsandbytes {kind}",
            exact=not nested,
        )
        for kind in ("nf4", "fp4")
        for nested in (False, True)
    },
    "bitsandbytes nf4 in bf16": Quantiser(
        lambda weight: bitsandbytes_4bit(weight, "nf4", False, torch.bfloat16),
        _IN_4_BITS | {"bnb_4bit_quant_storage": "bfloat16"},
        "bitsandbytes nf4",
    ),
    "gptq int4": _gptq(4, 64, None),
    "gptq int4, second version": _gptq(4, 64, "gptq_v2"),
    "gptq int4, shuffled": _gptq(4, 32, "gptq", "shuffled"),
    "gptq int4, no order": _gptq(4, 32, "gptq", "absent"),
    "gptq int8, one group": _gptq(8, -1, "gptq"),
    "gptq int2": _gptq(2, 64, "gptq_v2"),
    "gptq int3": _gptq(3, 64, "gptq"),
    "fp8 tensor, Model Optimizer": Quantiser(
        fp8_tensor, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, "FP8 (E4M3)"
    ),
    "nvfp4, Model Optimizer": Quantiser(
        nvfp4_model_optimizer, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"
    ),
    "fp8 tensor, Quark": Quantiser(
        fp8_tensor,
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
            "layer_quant_config": {},
            "exclude": ["lm_head"],
        },
        "FP8 (E4M3)",
    ),
    **{f"mlx int{bits}": _mlx(bits) for bits in (2, 3, 4, 5, 6, 8)},
    "awq": Quantiser(
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        "AWQ int4, with columns rescaled",
    ),
}

if sys.version_info >= (3, 11):  # as compressed-tensors needs
    QUANTISERS |= {
        "fp8 tensor, compressed": _compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
        "fp8 rows, compressed": _compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        "fp8 blocks, compressed": _compressed(
            "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[32, 64]
        ),
        "mxfp8": _compressed(
            "mxfp8-quantized",
            num_bits=8,
            type="float",
            strategy="group",
            group_size=32,
            scale_dtype="torch.uint8",
        ),
        "int8 rows": _compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
        "int8 tensor": _compressed("int-quantized", num_bits=8, type="int", strategy="tensor"),
        "int8 rows, zero points": _compressed(
            "int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False
        ),
        "packed int4": _compressed("pack-quantized", num_bits=4, type="int", **_GROUPS),
        "packed int4, zero points": _compressed(
            "pack-quantized", num_bits=4, type="int", symmetric=False, **_GROUPS
        ),
        "packed int4 rows, zero points": _compressed(
            "pack-quantized", num_bits=4, type="int", symmetric=False, strategy="channel"
        ),
        "packed int8": _compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
        "packed int3, zero points": _compressed(
            "pack-quantized", num_bits=3, type="int", symmetric=False, **_GROUPS
        ),
        "nvfp4": _compressed(
            "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16
        ),
        "mxfp4": _compressed(
            "mxfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="group",
            group_size=32,
            scale_dtype="torch.uint8",
        ),
    }
