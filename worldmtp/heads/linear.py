"""Linear heads: a vocabulary matrix for each depth on the trunk's hidden state, and nothing else.

    logits of x_{t+k} = U_k h                   for depths k = 2 .. K, h the trunk's hidden state at the same position

The control for every other family: what a hidden state says of later tokens without anything being computed. The
latent is the trunk's own, so losses on latents, and world heads at depth k, have nothing of the heads' to read. U_k is
drawn, not copied from the LM head (Gloeckle et al. 2024, arXiv 2404.19737, compare such heads among others).

``output_norm`` puts a norm before U_k. Left out: sharing U_k, or the LM head, which leaves nothing to learn.
"""

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, OutputLayers, PointwiseHead
from worldmtp.model.config import MTPConfig


class LinearHead(PointwiseHead):
    """An output layer for each of depths 2 .. K."""

    ignores = ("concat_order", "feature_layers", "head_layers", "head_width", "recycle_stage")
    copies_lm_head = False

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        if config.unembedding == "shared":
            raise ValueError(
                "unembedding='shared' with head='linear': the LM head on the trunk's own hidden state is the trunk "
                "itself at every depth; use unembedding='own', or head='blockwise' for heads that share it."
            )
        self.output = OutputLayers(config, trunk, self.copies_lm_head)

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose an output layer of its own."""
        return FamilyDefaults(unembedding="own")

    def transform(
        self, depth: int, trunk_hidden: Float[Tensor, "batch query width"]
    ) -> Float[Tensor, "batch query hidden"]:
        """Return the state as it is."""
        return trunk_hidden
