"""A trunk as decoding runs it: any causal LM's own forward over a ``SlotCache``, in evaluation mode.

``HuggingFaceRunner`` calls the trunk's own forward, whatever its class. ``worldmtp.decoding.lean`` has a leaner runner
for the families whose forward it knows.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.decoding.cache import SlotCache
from worldmtp.model import MTPModel
from worldmtp.model.adapters import without_peft_wrapper
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import TrunkFeatures, additive_mask, has_sliding_attention
from worldmtp.model.trunk import evaluation_mode as evaluation_mode

_FULL, _SLIDING = "full_attention", "sliding_attention"


class HuggingFaceRunner:
    """A ``TrunkRunner`` of any trunk with attention layers; a sliding window is a mask, so that nothing is forgotten.

    Raises:
        TypeError: a layer is not an attention layer, so what it has read cannot be taken back.
    """

    def __init__(self, model: MTPModel) -> None:
        config = model.trunk.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        other = sorted(kinds - {_FULL, _SLIDING})
        if not hasattr(config, "num_attention_heads"):
            other = ["no attention"]
        if other:
            raise TypeError(
                f"{type(model.trunk).__name__} has layers of {other}; decoding takes rejected drafts back, which needs "
                "layers of full or sliding attention."
            )
        self._model = model
        self._window = config.sliding_window if has_sliding_attention(config) else None
        self._mixed = len(kinds) > 1

    @property
    def copied_bytes(self) -> int:
        """Return 0: nothing is copied."""
        return 0

    def begin(self, num_positions: int) -> None:
        """Do nothing: the trunk's own weights are read at every call."""

    def __call__(
        self,
        input_ids: Int[Tensor, "row query"],
        position_ids: Int[Tensor, "row query"],
        allowed: Bool[Tensor, "mask_row 1 query key"] | None,
        cache: SlotCache,
    ) -> TrunkFeatures:
        """Run the trunk's own forward."""
        if allowed is None:
            allowed = torch.ones((1, 1, input_ids.shape[1], cache.extent), dtype=torch.bool, device=input_ids.device)
        mask = self._mask(allowed, position_ids)
        with self._model.recording() as recording:
            self._model.base_model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
        return recording.features()

    def _mask(self, allowed: Tensor, position_ids: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the mask in the form that the trunk's backbone takes."""
        num_rows = len(position_ids)

        def additive(may: Tensor) -> Tensor:
            return additive_mask(may, self._model.dtype).expand(num_rows, -1, -1, -1)

        if self._window is None:
            return additive(allowed)
        # A token stands in the slot of its position or, in a tree, in a later one: near, so inside the window.
        slots = torch.arange(allowed.shape[-1], device=allowed.device)
        near = slots > position_ids[:, None, :, None] - self._window
        if not self._mixed:
            return additive(allowed & near)
        return {_FULL: additive(allowed), _SLIDING: additive(allowed & near)}


def as_mtp_model(model: Any) -> MTPModel:
    """Return the model itself, or a trunk as a model without heads; the trunk is not copied.

    No global generator moves. PEFT's wrapper is taken off: the layers inside hold the active adapters.

    Raises:
        TypeError: the model is neither an MTPModel nor a causal LM.
        ValueError: a wrapper that does more than its layers do.
    """
    model = without_peft_wrapper(model)
    if isinstance(model, MTPModel):
        return model
    unused = torch.Generator().manual_seed(0)  # for the initial world heads, which nobody reads
    return MTPModel.from_trunk(model, MTPConfig(head="latent", depth=1), unused)


def features_at(
    features: TrunkFeatures, rows: Int[Tensor, " selected"], places: Int[Tensor, " selected"]
) -> TrunkFeatures:
    """Return the features of one place each of some rows, as rows of one position."""
    return features.map(lambda hidden: hidden[rows, places][:, None])
