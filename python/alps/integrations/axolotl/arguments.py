"""The keys of alps in axolotl's configuration."""

from typing import Any, Literal

from pydantic import BaseModel, model_validator

_PLUGIN = "alps.integrations.axolotl."


class AlpsArguments(BaseModel):
    """What axolotl's file says of the heads to train: a head set, or a pair of checkpoints to scan.

    Attributes:
        alps_heads: A file or folder with a head set, or the name of a repository on the hub that has one.
        alps_base: The checkpoint before a tuning, which need not be the model that is trained now.
        alps_tuned: The checkpoint after it.
        alps_ratio: The share of the heads to select of the pair; 0.10 when not given.
        alps_statistic: What ranks the heads of the pair; "relative_delta" when not given.
        alps_others: Whether the parameters outside Q, K and V train; "train" when not given.
    """

    alps_heads: str | None = None
    alps_base: str | None = None
    alps_tuned: str | None = None
    alps_ratio: float | None = None
    alps_statistic: str | None = None
    alps_others: Literal["train", "freeze"] | None = None

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: Any) -> Any:
        """Refuses keys that contradict each other or that the plugin cannot honour, before a model is loaded."""
        if not any(str(name).startswith(_PLUGIN) for name in data.get("plugins") or ()):
            return data  # axolotl keeps the plugins of an earlier configuration
        of_pair = [f"alps_{name}" for name in ("base", "tuned", "ratio", "statistic")]
        given = [name for name in of_pair if data.get(name) is not None]
        if data.get("alps_heads") is not None and given:
            raise ValueError(f"alps_heads: expected heads or a pair to scan, found {', '.join(given)} too")
        if data.get("alps_heads") is None and not {"alps_base", "alps_tuned"} <= set(given):
            raise ValueError("expected alps_heads, or alps_base and alps_tuned")
        if data.get("adapter"):
            raise ValueError(
                f"adapter: expected none, found {data['adapter']!r}: the plugin trains the weights of the heads themselves"
            )
        if data.get("load_in_8bit") or data.get("load_in_4bit"):
            raise ValueError(
                "load_in_8bit, load_in_4bit: packed weights cannot be trained without an adapter"
            )
        return data
