"""Reading a small Llama: its sizes, and its weights rounded to bfloat16."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
"""By the names of transformers."""


@dataclass(frozen=True)
class Sizes:
    """What a Llama's configuration says.

    Attributes:
        layers: Layers.
        heads: Query heads of a layer.
        groups: Key/value groups of a layer.
        head_size: Rows of a head.
        hidden: Width of the model.
        intermediate: Width between the projections of a feed-forward block.
        vocabulary: Tokens.
        theta: Base of the rotary frequencies.
        epsilon: Of the norms.
    """

    layers: int
    heads: int
    groups: int
    head_size: int
    hidden: int
    intermediate: int
    vocabulary: int
    theta: float
    epsilon: float

    @property
    def rows(self) -> int:
        """Rows of a group: its queries, its key and its value."""
        return (self.heads // self.groups + 2) * self.head_size

    def config(self) -> dict[str, Any]:
        """A config.json of transformers."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": self.head_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "rope_theta": self.theta,
            "rms_norm_eps": self.epsilon,
            "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
            "torch_dtype": "bfloat16",
        }


def of_config(config: dict[str, Any]) -> Sizes:
    """The sizes that a config.json of a Llama with tied embeddings says.

    Raises:
        ValueError: The model is another one.
    """
    if config.get("model_type") != "llama" or not config.get("tie_word_embeddings"):
        raise ValueError("expected a Llama with tied embeddings")
    heads = config["num_attention_heads"]
    rope = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10000.0)
    return Sizes(
        layers=config["num_hidden_layers"],
        heads=heads,
        groups=config.get("num_key_value_heads", heads),
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        theta=float(rope),
        epsilon=config["rms_norm_eps"],
    )


def read(path: Path) -> tuple[Sizes, Tensors]:
    """Sizes and bfloat16 weights of a folder of transformers with one safetensors file, or of a GGUF file.

    Raises:
        ValueError: The model is no Llama with tied embeddings.
        OSError: A file cannot be read.
    """
    if path.is_dir():
        sizes = of_config(json.loads((path / "config.json").read_text()))
        tensors = load_file(path / "model.safetensors")
        tensors.pop("lm_head.weight", None)
    else:
        sizes, tensors = _read_gguf(path)
    return sizes, {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def write(path: Path, sizes: Sizes, tensors: Tensors) -> None:
    """A folder of transformers."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(sizes.config(), indent=2))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")


_GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _read_gguf(path: Path) -> tuple[Sizes, Tensors]:
    from gguf import GGUFReader, dequantize  # type: ignore[import-not-found, unused-ignore]

    reader = GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    if field("general.architecture") != "llama" or any(it.name == "output.weight" for it in reader.tensors):
        raise ValueError(f"{path}: expected a Llama with tied embeddings")
    heads, hidden = field("llama.attention.head_count"), field("llama.embedding_length")
    sizes = Sizes(
        layers=field("llama.block_count"),
        heads=heads,
        groups=field("llama.attention.head_count_kv"),
        head_size=hidden // heads,
        hidden=hidden,
        intermediate=field("llama.feed_forward_length"),
        vocabulary=field("llama.vocab_size"),
        theta=field("llama.rope.freq_base"),
        epsilon=field("llama.attention.layer_norm_rms_epsilon"),
    )
    tensors: Tensors = {}
    for it in reader.tensors:
        values = np.asarray(dequantize(it.data, it.tensor_type), np.float32)
        part = it.name.removesuffix(".weight").split(".")
        if part[0] == "blk":
            count = {"attn_q": sizes.heads, "attn_k": sizes.groups}.get(part[2])
            if count:  # GGUF stores the two halves of a head's rows in turns
                halves = values.reshape(count, sizes.head_size // 2, 2, hidden)
                values = halves.swapaxes(1, 2).reshape(values.shape)
            name = f"model.layers.{part[1]}.{_GGUF_NAMES[part[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[part[0]]
        tensors[name] = torch.from_numpy(values.copy())
    return sizes, tensors
