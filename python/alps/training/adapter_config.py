"""What an adapter of PEFT trains: the configuration that is saved with it."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType

from alps.errors import ArgumentError
from alps.heads import HeadSet

PEFT_TYPE = "ALPS"


def _peft_type() -> PeftType:
    """The member of PEFT's enumeration of methods, which is added where it is missing.

    PEFT takes no methods from outside but by this way.
    """
    if PEFT_TYPE not in PeftType.__members__:
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = member._value_ = PEFT_TYPE
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = PeftType._value2member_map_[PEFT_TYPE] = member
        type.__setattr__(PeftType, PEFT_TYPE, member)  # an enumeration's own refuses
    return PeftType(PEFT_TYPE)


_TYPE = _peft_type()


@dataclass
class AlpsConfig(PeftConfig):
    """An adapter that trains the rows of the chosen heads, and holds nothing else.

        model = peft.get_peft_model(model, alps.AlpsConfig(heads=heads, task_type="CAUSAL_LM"))

    Attributes:
        heads: The heads to train: a HeadSet, the path of a saved one, or its document. The document is
            what the attribute holds afterwards; `head_set` gives the set.
        modules_to_save: Modules besides the heads to train and save whole, a classifier for instance.
        fingerprint: Of the weights that project to queries, keys and values in the base model, and of the
            places of the rows in them. PEFT reads it from a saved adapter, and a base with other weights or heads
            at other places is refused. Not for callers to set.
        target_modules: The modules that hold the heads' rows. Not for callers to set.

    Raises:
        ArgumentError: There are no heads in `heads`, or `heads` is of none of these types.
        CheckpointError: The document is not a head set.
        OSError: The file cannot be read.
    """

    heads: Any = None
    modules_to_save: list[str] | None = None
    fingerprint: str | None = None
    target_modules: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = _TYPE
        heads = self.heads
        if isinstance(heads, str | os.PathLike):
            heads = HeadSet.load(heads)
        elif isinstance(heads, dict):
            if isinstance(layers := heads.get("heads"), dict):
                # PEFT sorts the names in its files as text: "10" before "2".
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
        # Of a saved adapter; the attribute becomes that of the model which the adapter is put on.
        self._expected_fingerprint = self.fingerprint

    @property
    def head_set(self) -> HeadSet:
        """The heads that train."""
        return HeadSet.from_json(json.dumps(self.heads), "AlpsConfig.heads")

    @property
    def expected_fingerprint(self) -> str | None:
        """The fingerprint of the base that a saved adapter was trained on; None for a new adapter."""
        return self._expected_fingerprint
