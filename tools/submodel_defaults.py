"""Writes what configurations of models within models leave out to rust/attention/submodel_defaults.json.

Files written by older versions of transformers hold of `text_config` and its like only what differs from
the defaults of its class. These are the defaults, as the installed transformers has them: for every model
type the types of the models within, and for every type that can be within, the values that a layout asks for.

    python tools/submodel_defaults.py
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ATTENTION = Path(__file__).parent.parent / "rust" / "attention"


def strings(value: Any) -> Iterator[str]:
    """Every string within a JSON value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def keys_asked_for() -> set[str]:
    """The keys that the layouts ask a configuration for."""
    keys = set(strings(json.loads((ATTENTION / "config_keys.json").read_text())))
    for file in (ATTENTION / "layouts").glob("*.json"):
        layout = json.loads(file.read_text())
        keys.update(
            strings([layout.get("sizes"), layout.get("layers_without_keys"), layout.get("keys_as_values")])
        )
    return keys


def known_types() -> set[str]:
    """The model types that the layouts and the list of wrappers name."""
    types = set(json.loads((ATTENTION / "submodels.json").read_text())["model_types"])
    for file in (ATTENTION / "layouts").glob("*.json"):
        types.update(strings(list(json.loads(file.read_text())["model_types"].values())))
    return types


def main() -> None:
    """Writes the file."""
    transformers.logging.set_verbosity_error()
    part_keys = [part["key"] for part in json.loads((ATTENTION / "submodels.json").read_text())["parts"]]
    keys, known = keys_asked_for(), known_types()
    parts: dict[str, dict[str, str]] = {}
    for model_type in sorted(CONFIG_MAPPING):
        try:
            config = CONFIG_MAPPING[model_type]().to_dict()
        except (TypeError, ValueError, ImportError, AttributeError, StrictDataclassError):
            continue  # cannot be made without arguments, so that no file leaves these out
        inner = {key: config[key].get("model_type") for key in part_keys if isinstance(config.get(key), dict)}
        parts[model_type] = {key: name for key, name in inner.items() if name in known}
    within = {name for inner in parts.values() for name in inner.values()}
    within.update(("llama", "mistral", "qwen2", "opt", "gemma", "clip_vision_model", "siglip_vision_model"))
    table: dict[str, dict[str, Any]] = {}
    for model_type in sorted(known & set(CONFIG_MAPPING)):
        entry: dict[str, Any] = {}
        if parts.get(model_type):
            entry["parts"] = parts[model_type]
        if model_type in within:
            fields = dataclasses.fields(CONFIG_MAPPING[model_type])
            values = {field.name: field.default for field in fields if field.name in keys}
            entry["values"] = {
                key: value for key, value in values.items() if isinstance(value, bool | int | list)
            }
        if entry:
            table[model_type] = entry
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items())
    (ATTENTION / "submodel_defaults.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
