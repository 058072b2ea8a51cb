"""Tells whether the base of an adapter is the one that it was trained on, in whatever number format it is loaded.

The fingerprint of a base is a hash of its Q, K and V weights as float32, and of the positions of the rows. A base that was
stored in a format and is loaded in a wider one has the same. A base that was trained in one format D and is loaded in a
narrower one E has other weights, those rounded to E; so an adapter holds the fingerprints of the weights rounded to the
other formats too. Where D is narrower, the loaded weights are rounded to D.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from alps.errors import PairError
from alps.training import quantised

_FORMATS = ("float32", "bfloat16", "float16")


def check(config: Any, projections: dict[str, nn.Module], rows: dict[str, Tensor]) -> None:
    """Refuses another base than that of the configuration, and puts the fingerprints of this one into it.

    Raises:
        PairError: The base has other weights, or the rows lie elsewhere in them.
    """
    expected, by_format = config.expected_fingerprint, config.expected_fingerprints
    own = _hash(projections, rows, None)
    if own is None:  # weights that are not there yet
        config.fingerprint, config.fingerprints = expected, by_format or None
        return
    dtype = _dtype(projections)
    if expected is not None and config.check_base and own != expected:
        of_training = [name for name, known in by_format.items() if known == expected]
        same = any(
            _hash(projections, rows, name) == by_format[name]
            for name in {dtype, *of_training} & by_format.keys() & {*_FORMATS}
        )
        if not same:
            formats = ""
            if of_training and dtype not in of_training:
                formats = (
                    f" It was trained over weights in {' or '.join(of_training)}, and these are in {dtype}."
                )
            raise PairError(
                "the adapter was trained on another base, or its heads are not those that it was trained with: "
                f"expected query, key and value weights and rows of fingerprint {expected}, found {own}.{formats} If the "
                "base is the right one, set `check_base` of its AlpsConfig to False and give PEFT the configuration "
                "(config=)"
            )
    config.fingerprint = own
    narrower = _FORMATS[_FORMATS.index("bfloat16") :] if dtype in _FORMATS else ()
    config.fingerprints = {name: str(_hash(projections, rows, name)) for name in narrower if name != dtype}
    config.fingerprints[dtype] = own


def _dtype(projections: dict[str, nn.Module]) -> str:
    """The number format of the weights; the first one's if they differ."""
    first = next(iter(projections.values())).get_parameter("weight")
    return str(first.dtype).removeprefix("torch.")


def _hash(projections: dict[str, nn.Module], rows: dict[str, Tensor], rounded_to: str | None) -> str | None:
    """Hashes names, weights as float32 and rows as int64, little-endian, by SHA-256; None for weights on `meta`."""
    digest = hashlib.sha256()
    for module_name, module in projections.items():
        quantised.keep_order(module)
        for name, parameter in module.named_parameters():
            if parameter.is_meta:
                return None
            digest.update(f"{module_name}.{name} {list(parameter.shape)}\n".encode())
            tensor = parameter.detach()
            if rounded_to is not None and tensor.is_floating_point():
                tensor = tensor.to(getattr(torch, rounded_to))
            weights: Any = tensor.to("cpu", torch.float32).contiguous().numpy()
            digest.update(weights.astype("<f4", copy=False))
        digest.update(rows[module_name].cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()
