"""The configuration of an adapter: which heads it trains."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType

from alps.errors import ArgumentError
from alps.heads import HeadSet
from alps.training.peft import model_card

PEFT_TYPE = "ALPS"


def _add_peft_type() -> PeftType:
    """Adds this method to PEFT's enumeration of methods, which has no public way to extend it."""
    if PEFT_TYPE not in PeftType.__members__:
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = member._value_ = PEFT_TYPE
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = PeftType._value2member_map_[PEFT_TYPE] = member
        type.__setattr__(PeftType, PEFT_TYPE, member)  # the enumeration's own __setattr__ refuses
    return PeftType(PEFT_TYPE)


_TYPE = _add_peft_type()


@dataclass
class AlpsConfig(PeftConfig):
    """Configures an adapter of PEFT that trains the rows of the chosen heads, and holds nothing else.

    `alps.restrict` by default lets all parameters outside Q, K and V train; an adapter trains nothing else but
    `modules_to_save`.

    Examples:
        >>> import peft
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> config = alps.AlpsConfig(heads="heads.json", task_type="CAUSAL_LM")
        >>> adapted = peft.get_peft_model(model, config)
        >>> adapted.print_trainable_parameters()
        trainable params: 1,280 || all params: 36,384 || trainable%: 3.5180
        >>> adapted.save_pretrained("adapter")

        It loads wherever `alps` is imported:

        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> adapted = peft.PeftModel.from_pretrained(model, "adapter")
        >>> merged = adapted.merge_and_unload()

    Attributes:
        heads: The heads to train: a HeadSet, the path of a saved one, or its JSON document as a dict. The attribute
            then holds the document; `head_set` gives the set.
        modules_to_save: Other modules to train and save whole, such as a classifier.
        check_base: Whether an adapter refuses a base with other Q, K and V weights than that of its training.
        fingerprint: A hash of the Q, K and V weights of the base model and of the positions of the rows in them.
            A saved adapter holds it, so that a base with other weights or other rows is refused. Not for callers
            to set.
        fingerprints: The same of the weights rounded to other formats, by format, so that the same base is known
            where it is loaded in another one. Not for callers to set.
        target_modules: The modules that hold rows of the heads. Not for callers to set.

    Raises:
        ArgumentError: `heads` is empty or of another type.
        CheckpointError: The document is not a head set.
        OSError: The file cannot be read.
    """

    heads: Any = None
    modules_to_save: list[str] | None = None
    check_base: bool = True
    fingerprint: str | None = None
    fingerprints: dict[str, str] | None = None
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = _TYPE
        heads = self.heads
        if isinstance(heads, str | os.PathLike):
            heads = HeadSet.load(heads)
        elif isinstance(heads, dict):
            if isinstance(layers := heads.get("heads"), dict):
                # PEFT sorts the layers in its files as text: "10" before "2".
                ascending = sorted(layers, key=lambda layer: (len(layer), layer))
                heads = heads | {"heads": {layer: layers[layer] for layer in ascending}}
            heads = HeadSet.from_json(json.dumps(heads), "AlpsConfig.heads")
        if not isinstance(heads, HeadSet):
            raise ArgumentError(
                f"heads: expected an alps.HeadSet or the path of one, found {type(heads).__name__}"
            )
        if not len(heads):
            raise ArgumentError(
                "heads: expected one head at least, found an empty set; an adapter trains nothing else"
            )
        self.heads = json.loads(heads.to_json())
        # The fingerprints in a saved adapter; AlpsModel then sets those of the model.
        self.expected_fingerprint, self.expected_fingerprints = self.fingerprint, self.fingerprints or {}
        self.has_model = False

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Saves the configuration, and a model card beside it that says what the adapter is and how to load it.

        Args:
            save_directory: The folder to write into.
            kwargs: Other arguments of PEFT's method.
        """
        super().save_pretrained(save_directory, **kwargs)
        model_card.describe(Path(save_directory), self.head_set, self.base_model_name_or_path)

    @property
    def head_set(self) -> HeadSet:
        """The heads that train."""
        return HeadSet.from_json(json.dumps(self.heads), "AlpsConfig.heads")
