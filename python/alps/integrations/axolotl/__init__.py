"""A plugin for axolotl: trains the chosen heads only.

    plugins:
      - alps.integrations.axolotl.AlpsPlugin
    alps_heads: heads.json

`AlpsArguments` describes the keys.
"""

from typing import Any

from axolotl.integrations.base import BasePlugin

from alps.integrations.axolotl.arguments import AlpsArguments
from alps.training.restrict_callback import RestrictCallback

__all__ = ["AlpsArguments", "AlpsPlugin"]


class AlpsPlugin(BasePlugin):  # type: ignore[misc]
    """Gives axolotl's trainer a `RestrictCallback`, so that the saved model is an ordinary checkpoint."""

    def get_input_args(self) -> str:
        """The class of the keys in axolotl's file."""
        return "alps.integrations.axolotl.AlpsArguments"

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[RestrictCallback]:
        """The callback that restricts the model when the trainer is made, and releases it when training ends."""
        callback = RestrictCallback(
            cfg.alps_heads,
            base=cfg.alps_base,
            tuned=cfg.alps_tuned,
            ratio=cfg.alps_ratio,
            statistic=cfg.alps_statistic,
            others=cfg.alps_others or "train",
        )
        return [callback]
