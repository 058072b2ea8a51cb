"""A stand-in for axolotl: the part of its interface for plugins that ours uses, in the order of `axolotl train`.

Written from what axolotl 0.19 does: it loads a plugin by its name, makes a class of its own configuration and the plugin's
arguments, asks the plugin for callbacks before it makes its Trainer, trains, calls `post_train`, and saves with
`save_pretrained`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from support.training import TokenDataset


class BasePlugin:
    """The methods that do something in `train`; a plugin overrides some."""

    def register(self, cfg: dict[str, Any]) -> None: ...

    def get_input_args(self) -> str | None:
        return None

    def pre_model_load(self, cfg: Any) -> None: ...

    def post_model_load(self, cfg: Any, model: Any) -> None: ...

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        return []

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None: ...

    def post_train(self, cfg: Any, model: Any) -> None: ...


class Dictionary(dict[str, Any]):
    """A configuration whose missing keys are None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


class InputConfig(BaseModel):
    """The configuration without plugins."""

    base_model: str
    plugins: list[str] = []
    output_dir: str
    max_steps: int
    micro_batch_size: int
    learning_rate: float
    adapter: str | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the plugin import the stand-in as axolotl."""
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = BasePlugin  # type: ignore[attr-defined]
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "axolotl.integrations.base", base)
    monkeypatch.delitem(sys.modules, "alps.integrations.axolotl", raising=False)


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def train(document: dict[str, Any], folder: Path) -> Any:
    """What `axolotl train` does with a configuration, in the working folder; returns the trained model."""
    plugins = [_named(name)() for name in document["plugins"]]
    for plugin in plugins:
        plugin.register(document)
    arguments = [_named(name) for plugin in plugins if (name := plugin.get_input_args())]
    config = type("Config", (InputConfig, *arguments), {})(**document)
    cfg = Dictionary(config.model_dump(exclude_none=True))
    for plugin in plugins:
        plugin.pre_model_load(cfg)
    model = AutoModelForCausalLM.from_pretrained(cfg.base_model)
    for plugin in plugins:
        plugin.post_model_load(cfg, model)
    callbacks = [it for plugin in plugins for it in plugin.add_callbacks_pre_trainer(cfg, model)]
    settings = TrainingArguments(
        cfg.output_dir, max_steps=cfg.max_steps, per_device_train_batch_size=cfg.micro_batch_size,
        learning_rate=cfg.learning_rate, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=TokenDataset(), callbacks=callbacks)
    for plugin in plugins:
        plugin.post_trainer_create(cfg, trainer)
    trainer.train()
    for plugin in plugins:
        plugin.post_train(cfg, trainer.model)
    model.save_pretrained(cfg.output_dir)
    for plugin in plugins:
        plugin.post_train(cfg, model)
    return model
