"""Reading a latent: logits through its depth's output layer; reward, continuation and value through the world heads."""

from jaxtyping import Float
from torch import Tensor

from worldmtp.dynamics.protocol import Prediction
from worldmtp.model import MTPModel
from worldmtp.model.precision import full_precision
from worldmtp.model.world_heads import binned_mean


def read_latent(
    model: MTPModel, latent: Float[Tensor, "state hidden"], with_logits: bool, depth: int = 1
) -> Prediction:
    """What ``model`` reads off latents of a depth; expectations, not samples."""
    world = model.world_heads(latent)
    return Prediction(
        logits=model.logits_of(latent, depth) if with_logits else None,
        reward=binned_mean(world.reward_logits, model.world_heads.reward_bins),
        continuation=full_precision(world.continuation_logits).softmax(dim=-1)[..., 1],
        value=binned_mean(world.value_logits, model.world_heads.value_bins),
    )
