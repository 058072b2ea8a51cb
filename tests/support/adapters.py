"""Saves adapters with PEFT, merges them with PEFT, and compares scores up to rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

import alps

CHANGE = 0.1
"""The size of the changes. The weights have a standard deviation of 0.3."""

# An adapted weight is computed in float64 from a sum in float32, and rounded to float32 once; PEFT computes in
# float32 throughout. Both are within a few units in the last place of the true one, 2^-24 of the weight each, so
# differences of weights agree to about 1e-6 where they are as large as the weights, and to less where they are smaller.
FIRST_ORDER = 5e-6


def save_base(model: transformers.PreTrainedModel, folder: Path, dtype: torch.dtype) -> Path:
    """Saves the model in a number format."""
    model.to(dtype).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


def load(model: transformers.PreTrainedModel, folder: Path) -> Any:
    """Loads the saved model in float32, or in float64 if it is saved so."""
    wide = torch.float64 if model.dtype == torch.float64 else torch.float32
    return type(model).from_pretrained(folder, dtype=wide)


def save_adapter(model: Any, config: peft.PeftConfig, folder: Path, seed: int = 0) -> None:
    """Adds an adapter with random weights to the model, and saves it."""
    tuned = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                # A parameter of zeros would make the whole change 0. Other parameters keep their size.
                if not parameter.any():
                    parameter.add_(noise * CHANGE)
                else:
                    parameter.mul_(1 + noise * CHANGE)
    tuned.save_pretrained(str(folder))


def merge(model: Any, adapter: Path, folder: Path) -> None:
    """Loads an adapter onto the model with PEFT, merges it, and saves the result in the dtype of the computation."""
    merged: Any = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)


def edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Changes keys of a JSON file; a value of None removes the key."""
    import json

    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def assert_same(found: alps.HeadScores, expected: alps.HeadScores) -> None:
    """Checks that scores are equal up to rounding, and exactly 0 for the same heads."""
    assert found.geometry == expected.geometry
    assert found.statistics == expected.statistics
    # A merged weight is rounded by half a unit in the last place, which is larger relative to a smaller change.
    moved = expected["relative_delta"][expected["relative_delta"] > 0]
    rounding = np.finfo(np.float32).eps / moved.min() if moved.size else 0.0
    for name in found.statistics:
        if name == "wasserstein_z":  # a difference, so its error is not relative to its value
            np.testing.assert_allclose(found[name], expected[name], atol=1e-3)
        elif name == "changed":
            np.testing.assert_allclose(found[name], expected[name], atol=2e-3)
        else:
            tolerance = max(FIRST_ORDER, rounding) * (2 if name in ("kl", "js", "cosine") else 1)
            # Rounding moves the running sums of "wasserstein" by a share of what they are without order in the changes,
            # euclidean * sqrt(pi/32), also where the changes of a head happen to cancel each other.
            values = np.abs(expected[name])
            if name == "wasserstein" and "euclidean" in expected:
                values = np.maximum(values, expected["euclidean"] * math.sqrt(math.pi / 32))
            np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(expected[name]), err_msg=name)
            excess = np.abs(found[name] - expected[name]) - tolerance * values
            assert not (excess > 0).any(), f"{name}: {found[name]} is not {expected[name]}"
        zero = expected["delta_norm"] == 0
        assert ((found["delta_norm"] == 0) == zero).all()
