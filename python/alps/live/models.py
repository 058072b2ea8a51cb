"""Loads models of transformers from this machine."""

import torch
from torch import nn

from alps import sources
from alps.sources import Name


def load(model: Name, over: Name | None = None) -> nn.Module:
    """Loads a checkpoint as a causal language model, in the format of its weights; an adapter is merged.

    Args:
        model: A checkpoint or adapter on this machine.
        over: The checkpoint that an adapter changes, if its configuration does not say.

    Raises:
        FileNotFoundError: It is not on this machine.
        OSError: A file cannot be read.
        ValueError: transformers has no causal language model of its type.
    """
    from transformers import AutoModelForCausalLM

    if over is None:
        source = sources.find(model, local_files_only=True)
    else:
        source = sources.find_both(over, model, None, local_files_only=True)[1]
    loaded: nn.Module = AutoModelForCausalLM.from_pretrained(source.path, dtype="auto")
    if source.adapter is None:
        return loaded
    from peft import PeftModel

    merged: nn.Module = PeftModel.from_pretrained(loaded, source.adapter).merge_and_unload()
    return merged


def load_quietly(model: Name, over: Name | None = None, device: str | None = None) -> nn.Module:
    """Loads a model without a bar, onto a device: a GPU if there is one, when it is not given."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return load(model, over).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
