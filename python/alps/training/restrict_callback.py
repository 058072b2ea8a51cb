"""Restricts the model of a Trainer of transformers before its optimizer is made, and releases it after training."""

import os
from pathlib import Path
from typing import Any, Literal

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from alps.arguments import Component
from alps.errors import ArgumentError, ModelError
from alps.heads import HeadSet
from alps.scan import scan
from alps.sources import Name
from alps.training.projection import restricted_projections
from alps.training.restriction import release, restrict
from alps.training.summary import Restriction


class RestrictCallback(TrainerCallback):
    """Lets a Trainer of transformers, TRL or axolotl train the chosen heads only, and save an ordinary checkpoint.

    The heads are a saved set, or those of two checkpoints, which every process scans when the Trainer is made.

    `restrict` is called at the end of the Trainer's `__init__`: after the model is on its device, and before the optimizer is
    made, a checkpoint is loaded to resume from, and the model is wrapped or sharded. `release` is called when training
    ends, after the best checkpoint was loaded if the Trainer does so, and the output folder gets the heads as `heads.json`.
    Under FSDP2 the model stays restricted and sharded; `save_model` then saves an ordinary checkpoint too. A
    training that fails leaves its model restricted.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> data = [{"input_ids": torch.arange(16), "labels": torch.arange(16)}]
        >>> options = {"max_steps": 1, "report_to": "none", "disable_tqdm": True}
        >>> callback = alps.RestrictCallback("heads.json")
        >>> trainer = Trainer(
        ...     model,
        ...     TrainingArguments("out", **options),
        ...     train_dataset=data,
        ...     callbacks=[callback],
        ... )
        >>> result = trainer.train()
        {'train_runtime': ...}
        >>> trainer.save_model("trained")
        >>> callback.restriction.heads
        {0: (5,), 1: (2, 3), 3: (6,)}

        From a pair of checkpoints:

        >>> callback = alps.RestrictCallback(base="base", tuned="tuned", ratio=0.1)

    Attributes:
        heads: The heads; None until the pair is scanned.
        restriction: The numbers of parameters that train and that do not; None until the Trainer is made.
    """

    def __init__(
        self,
        heads: HeadSet | str | os.PathLike[str] | None = None,
        *,
        base: Name | None = None,
        tuned: Name | None = None,
        ratio: float | None = None,
        statistic: str | None = None,
        component: Component | None = None,
        others: Literal["train", "freeze"] = "train",
    ) -> None:
        """Loads the heads, unless a pair is to be scanned.

        Args:
            heads: A head set, or what `HeadSet.from_pretrained` takes: a file, a folder, or a name on the hub.
            base: The checkpoint before a tuning, as for `alps.scan`; not with `heads`, and only with `tuned`.
            tuned: The checkpoint after the tuning.
            ratio: The share of the heads of the pair to select; 0.10 when not given.
            statistic: The statistic that ranks the heads of the pair; "relative_delta" when not given.
            component: The attention whose heads are scanned, as for `alps.scan`.
            others: Whether the parameters outside Q, K and V train, as for `alps.restrict`.

        Raises:
            ArgumentError: There is neither a head set nor a pair, or both, or an argument is out of its domain.
            CheckpointError: The file is no head set.
            OSError: The file cannot be read.
        """
        if others not in ("train", "freeze"):
            raise ArgumentError(f'others: expected "train" or "freeze", found {others!r}')
        of_pair = {
            "base": base, "tuned": tuned, "ratio": ratio, "statistic": statistic, "component": component,
        }  # fmt: skip
        given = [name for name, value in of_pair.items() if value is not None]
        if heads is not None and given:
            raise ArgumentError(f"expected heads, or a pair to scan; found heads and {', '.join(given)}")
        if heads is None and (base is None or tuned is None):
            found = ", ".join(given) or "nothing"
            raise ArgumentError(f"expected heads, or a base and a tuned checkpoint to scan; found {found}")
        if ratio is not None and not 0 <= ratio <= 1:
            raise ArgumentError(f"ratio: expected 0 to 1, found {ratio!r}")
        self.heads = HeadSet.from_pretrained(heads) if isinstance(heads, str | os.PathLike) else heads
        self.restriction: Restriction | None = None
        self._base, self._tuned, self._component = base, tuned, component
        self._ratio, self._statistic = ratio, statistic
        self._others = others

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Restricts the model.

        Raises:
            ArgumentError: The model has an adapter, the Trainer was given an optimizer, or as of `restrict`.
            AlpsError: The pair cannot be scanned; or as of `restrict`.
        """
        if others.get("optimizer") is not None:
            raise ArgumentError(
                "the Trainer was given an optimizer, of the parameters before the model was restricted; call "
                "alps.restrict(model, heads) before making the optimizer, and leave this callback out"
            )
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ArgumentError(
                "the model has an adapter of PEFT, and what is saved would be the adapter without the trained heads; "
                "train the heads as an adapter, alps.AlpsConfig(heads=heads), or merge the adapter first"
            )
        if self.heads is None:
            assert self._base is not None
            assert self._tuned is not None
            scores = scan(self._base, self._tuned, component=self._component)
            self.heads = scores.select(self._ratio, statistic=self._statistic)
        self.restriction = restrict(model, self.heads, others=self._others)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Checks that what trains is the restricted model.

        Raises:
            ArgumentError: It is another model.
            ModelError: It is sharded by the first version of FSDP.
        """
        if self.restriction is None or not restricted_projections(model):
            raise ArgumentError(
                "the model that trains is not restricted: give alps.RestrictCallback to the Trainer when that is made "
                "(callbacks=[...]), with a model and not a model_init, and make a new Trainer for every training"
            )
        if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
            raise ModelError(
                "the model is sharded by FSDP1, which would save the trained rows beside the weights; use FSDP2 "
                '(fsdp_config={"fsdp_version": 2})'
            )

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Releases the model, unless it is sharded, and saves the heads in the output folder."""
        if not _is_sharded(model):
            release(model)
        if state.is_world_process_zero and self.heads is not None:
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.heads.save(folder / "heads.json")


def _is_sharded(model: nn.Module) -> bool:
    projections = restricted_projections(model).values()
    return any(isinstance(parameter, DTensor) for it in projections for parameter in it.parameters())
