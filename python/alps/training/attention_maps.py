"""The attention maps that a model returns: which key each query attends to, for every head."""

from typing import Any

from torch import Tensor

from alps.errors import ModelError
from alps.geometry import Geometry

_FIELDS = {
    "decoder": ("attentions", "decoder_attentions"),
    "encoder": ("attentions", "encoder_attentions"),
    "cross": ("cross_attentions",),
}
"""Where a model returns the maps of a component, the first that there is."""


def attention_maps(outputs: Any, geometry: Geometry) -> tuple[Tensor, ...]:
    """The map of each layer of the geometry, [batch, heads, queries, keys], from what a model returned.

    The model has to be called with `output_attentions=True` and to have the attention implementation "eager".

    Raises:
        ModelError: They are not there, or not those of this geometry.
    """
    fields = _FIELDS.get(geometry.component, ())
    found = next((maps for field in fields if (maps := getattr(outputs, field, None)) is not None), ())
    maps = tuple(it for it in found if isinstance(it, Tensor))
    heads = [sizes.query_heads for sizes in geometry.sizes]
    if [it.shape[1] for it in maps if it.dim() == 4] != heads:
        raise ModelError(
            f"the {geometry.component} of {geometry.model_type}: expected an attention map of each of {len(heads)} layers, "
            f'found {len(maps)}; load the model with attn_implementation="eager", which not every model type has'
        )
    return maps
