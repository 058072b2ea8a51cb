"""The forward pass of many copies of a Llama at once, which share any of their weights or none.

Activations are [arms, rows of the batch x length, width]. A weight is [out, in], and then all arms share it,
or [arms, out, in]. The rows of Q, K and V are stored group by group: the queries of a group's heads, its
key, its value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from evidence.checkpoint import Sizes, Tensors


@dataclass
class Weights:
    """Weights of all layers; each may have an axis of arms before the last (norms) or last two (matrices).

    Attributes:
        embedding: [vocabulary, hidden].
        norm: The last norm, [hidden].
        attention_norm: A tensor for each layer, [hidden].
        qkv: A tensor for each layer, [groups * rows, hidden].
        output: A tensor for each layer, [hidden, heads * head_size].
        feed_norm: A tensor for each layer, [hidden].
        gate_up: A tensor for each layer, [2 * intermediate, hidden].
        down: A tensor for each layer, [hidden, intermediate].
    """

    embedding: Tensor
    norm: Tensor
    attention_norm: Sequence[Tensor]
    qkv: Sequence[Tensor]
    output: Sequence[Tensor]
    feed_norm: Sequence[Tensor]
    gate_up: Sequence[Tensor]
    down: Sequence[Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Weights":
        """The same of changed tensors."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            changed[field.name] = change(value) if isinstance(value, Tensor) else [change(it) for it in value]
        return Weights(**changed)

    def others(self) -> list[Tensor]:
        """Everything but Q, K and V."""
        per_layer = [self.attention_norm, self.output, self.feed_norm, self.gate_up, self.down]
        return [self.embedding, self.norm, *(it for kind in per_layer for it in kind)]


def group_rows(tensors: Tensors, layer: int, sizes: Sizes) -> Tensor:
    """Rows of Q, K and V of a layer, group by group: [groups, rows of a group, hidden]."""
    name = "model.layers.{}.self_attn.{}_proj.weight"
    parts = [tensors[name.format(layer, kind)].view(sizes.groups, -1, sizes.hidden) for kind in "qkv"]
    return torch.cat(parts, dim=1)


def ungroup_rows(rows: Tensor, layer: int, sizes: Sizes) -> Tensors:
    """The reverse of `group_rows`."""
    size = sizes.head_size
    parts = rows.view(sizes.groups, -1, sizes.hidden).split([sizes.rows - 2 * size, size, size], dim=1)
    return {
        f"model.layers.{layer}.self_attn.{kind}_proj.weight": part.reshape(-1, sizes.hidden)
        for kind, part in zip("qkv", parts, strict=True)
    }


def arrange(tensors: Tensors, sizes: Sizes) -> Weights:
    """The weights of one model as the forward pass takes them."""

    def of_layers(name: str) -> list[Tensor]:
        return [tensors[f"model.layers.{layer}.{name}.weight"] for layer in range(sizes.layers)]

    return Weights(
        embedding=tensors["model.embed_tokens.weight"],
        norm=tensors["model.norm.weight"],
        attention_norm=of_layers("input_layernorm"),
        qkv=[group_rows(tensors, layer, sizes).flatten(0, 1) for layer in range(sizes.layers)],
        output=of_layers("self_attn.o_proj"),
        feed_norm=of_layers("post_attention_layernorm"),
        gate_up=[
            torch.cat(pair) for pair in zip(of_layers("mlp.gate_proj"), of_layers("mlp.up_proj"), strict=True)
        ],
        down=of_layers("mlp.down_proj"),
    )


def rotation(length: int, sizes: Sizes, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions, each [length, 1, head_size]."""
    steps = torch.arange(0, sizes.head_size, 2, device=like.device).float() / sizes.head_size
    angles = torch.arange(length, device=like.device).float()[:, None] / sizes.theta**steps
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def linear(inputs: Tensor, weight: Tensor) -> Tensor:
    """Inputs [arms, tokens, in] times the transpose of weight, shared or of each arm."""
    if weight.dim() == 2:
        return functional.linear(inputs, weight)
    return torch.bmm(inputs, weight.transpose(1, 2))


def normed(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm over the width."""
    if weight.dim() == 1:
        return functional.rms_norm(inputs, (inputs.shape[-1],), weight, epsilon)
    return functional.rms_norm(inputs, (inputs.shape[-1],), None, epsilon) * weight[:, None]


def layer(
    hidden: Tensor,
    weights: tuple[Tensor, ...],
    rotary: tuple[Tensor, Tensor],
    sizes: Sizes,
    length: int,
    gate: Tensor | None = None,
) -> Tensor:
    """One layer.

    Args:
        hidden: [arms, sequences * length, hidden].
        weights: Attention norm, qkv, output, feed-forward norm, gate and up, down.
        rotary: What `rotation` returned.
        sizes: Of the model.
        length: Of a sequence.
        gate: [arms, heads], by which the outputs of heads are multiplied.
    """
    attention_norm, qkv, output, feed_norm, gate_up, down = weights
    arms, tokens, _ = hidden.shape
    size = sizes.head_size
    projected = linear(normed(hidden, attention_norm, sizes.epsilon), qkv)
    by_group = projected.view(-1, length, sizes.groups, sizes.rows // size, size)
    turned = by_group[..., :-1, :].reshape(-1, length, sizes.groups * (sizes.rows // size - 1), size)
    cosines, sines = rotary
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cosines + torch.cat((-second, first), dim=-1) * sines
    turned = turned.view(-1, length, sizes.groups, sizes.rows // size - 1, size)
    query = turned[..., :-1, :].flatten(2, 3).transpose(1, 2)
    key, value = turned[..., -1, :].transpose(1, 2), by_group[..., -1, :].transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    mixed = mixed.transpose(1, 2).reshape(arms, tokens, sizes.heads * size)
    if gate is not None:
        mixed = mixed * gate.repeat_interleave(size, dim=1)[:, None]
    hidden = hidden + linear(mixed, output)
    gated, up = linear(normed(hidden, feed_norm, sizes.epsilon), gate_up).chunk(2, dim=-1)
    return hidden + linear(functional.silu(gated) * up, down)


def embed(tokens: Tensor, embedding: Tensor) -> Tensor:
    """Tokens [arms, sequences, length] to [arms, sequences * length, hidden]."""
    flat = tokens.flatten(1)
    if embedding.dim() == 2:
        return functional.embedding(flat, embedding)
    arms, vocabulary, width = embedding.shape
    offsets = torch.arange(arms, device=flat.device)[:, None] * vocabulary
    return functional.embedding(flat + offsets, embedding.view(-1, width))


Layer = Callable[..., Tensor]


def hidden_states(
    weights: Weights,
    tokens: Tensor,
    sizes: Sizes,
    *,
    gates: Sequence[Tensor] | None = None,
    run: Layer = layer,
) -> Tensor:
    """The normed outputs of the last layer, [arms, sequences, length, hidden], for tokens [arms, sequences, length]."""
    arms, sequences, length = tokens.shape
    hidden = embed(tokens, weights.embedding)
    rotary = rotation(length, sizes, hidden)
    kinds = (
        weights.attention_norm,
        weights.qkv,
        weights.output,
        weights.feed_norm,
        weights.gate_up,
        weights.down,
    )
    for number, parts in enumerate(zip(*kinds, strict=True)):
        if gates is None:
            hidden = run(hidden, parts, rotary, sizes, length)
        else:
            hidden = run(hidden, parts, rotary, sizes, length, gates[number])
    return normed(hidden, weights.norm, sizes.epsilon).view(arms, sequences, length, -1)
