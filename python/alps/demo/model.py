"""A tiny Llama."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from alps.demo.settings import Settings


def create(settings: Settings) -> Any:
    """A Llama with random weights, in float32."""
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=settings.vocabulary,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.query_heads,
            num_key_value_heads=settings.key_value_heads,
            max_position_embeddings=settings.window,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
    )


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes an ordinary checkpoint, with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> Any:
    """Reads a checkpoint, ready to be trained."""
    return AutoModelForCausalLM.from_pretrained(folder).train()


def count(model: Any) -> int:
    """The parameters of a model; one that is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
