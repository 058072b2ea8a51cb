"""The other forms in which the configuration of a model was saved or published, and what alps reads of them.

Releases of transformers differ in how they write models within models: without the types of the parts, with the type of
the whole model for a part, or flat, with the keys of the decoder beside those of the whole. A form counts if
transformers reads the same sizes from it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import alps
import alps._alps as _alps

Config = dict[str, Any]
_PARTS = ("text_config", "vision_config", "audio_config", "thinker_config", "vlm_config", "llm_config")
_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "head_dim",
    "d_model",
)


def _without_types(config: Config) -> Config | None:
    return _change_parts(config, lambda part: part.pop("model_type", None))


def _with_type_of_whole(config: Config) -> Config | None:
    if not isinstance(config.get("vision_config"), dict):
        return None
    changed = copy.deepcopy(config)
    changed["vision_config"]["model_type"] = config["model_type"]
    return changed


def _flat(config: Config) -> Config | None:
    if not isinstance(config.get("text_config"), dict):
        return None
    changed = copy.deepcopy(config)
    text = changed.pop("text_config")
    return {**text, **changed, "model_type": config["model_type"]}


def _change_parts(config: Config, change: Callable[[Config], Any]) -> Config | None:
    changed = copy.deepcopy(config)
    parts = [changed[key] for key in _PARTS if isinstance(changed.get(key), dict)]
    for part in parts:
        change(part)
    return changed if parts else None


FORMS: Mapping[str, Callable[[Config], Config | None]] = {
    "parts without types": _without_types,
    "a part of the type of the whole": _with_type_of_whole,
    "flat": _flat,
}


def read_forms(folder: Path) -> dict[str, str]:
    """Reads a saved model in every form that its configuration may have.

    Returns:
        By form "read" if the attention is that of the saved form, or what is wrong.
    """
    config: Config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = file.keys()  # it is no mapping
        shapes = {name: list(file.get_slice(name).get_shape()) for name in names}
    try:
        expected = _attention(config, shapes)
    except alps.AlpsError:
        return {}
    found = {}
    for form, change in FORMS.items():
        changed = change(config)
        if changed is None or changed == config or not _is_same_model(config, changed):
            continue
        try:
            same = _attention(changed, shapes) == expected
            found[form] = "read" if same else "wrong: other attention than in the saved form"
        except alps.AlpsError as error:
            found[form] = f"refused: {error}"
    return found


def _attention(config: Config, shapes: dict[str, list[int]]) -> Any:
    return _alps.live_attention("model", json.dumps(config), shapes, None)


def _is_same_model(config: Config, changed: Config) -> bool:
    """Whether transformers reads the same sizes from the changed configuration."""
    try:
        made = [CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(it)) for it in (config, changed)]
    except Exception:  # a configuration class may raise anything for a form that it does not know
        return False
    return bool(_sizes(made[0].to_dict()) == _sizes(made[1].to_dict()))


def _sizes(config: Config) -> Any:
    parts = [config, *(config[key] for key in _PARTS if isinstance(config.get(key), dict))]
    inner = parts[1:] or parts
    return [[part.get(key) for key in _SIZES] for part in inner]
