"""Keys and values of a Hugging Face cache, in and out: what branches of a prefix share."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values."""

    keys: Float[Tensor, "batch heads length head_dim"]
    values: Float[Tensor, "batch heads length head_dim"]

    def select(self, rows: Int[Tensor, " selected"]) -> "LayerCache":
        """A copy of some rows, repeats allowed."""
        return LayerCache(self.keys[rows], self.values[rows])

    def gather(self, rows: Int[Tensor, " selected"], slots: Int[Tensor, "selected width"]) -> "LayerCache":
        """A copy of some rows, repeats allowed, each with the slots of its own."""

        def gathered(values: Tensor) -> Tensor:
            return values.transpose(1, 2)[rows[:, None], slots].transpose(1, 2)

        return LayerCache(gathered(self.keys), gathered(self.values))


def read_cache(cache: Cache) -> tuple[LayerCache, ...]:
    """Every layer of a cache.

    Raises:
        TypeError: a layer keeps no keys and values (linear attention, state spaces), so prefixes cannot be branched.
    """
    layers = []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor):
            raise TypeError(
                f"layer {index} caches a {type(layer).__name__} without keys and values; branching a prefix needs a "
                "trunk of attention layers."
            )
        layers.append(LayerCache(keys, values))
    return tuple(layers)


def make_cache(layers: Sequence[LayerCache]) -> DynamicCache:
    """A cache that holds ``layers`` and can be appended to; they themselves stay as they are."""
    cache = DynamicCache()
    for index, layer in enumerate(layers):
        cache.update(layer.keys, layer.values, index)
    return cache
