"""Action masks: the policy that acts, and the one that learns from it, give forbidden tokens probability zero.

An environment says in ``infos["action_mask"]``, (N, V) of 0 and 1, which tokens may come next, as
``worldmtp.envs.VectorActionMask`` does. The softmax is taken over the allowed tokens, in acting and in every
log-probability of the update, so that the ratio of both is that of one family of policies (Huang and Ontanon 2022, "A
closer look at invalid action masking in policy gradient algorithms", https://arxiv.org/abs/2006.14171).

Left out: masks of places that no observation has shown yet. So drafts, which need them, and imagination in latents are
refused; imagined episodes are observed as real ones are, and masked as they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def allowed_tokens(infos: Mapping[str, Any]) -> Bool[np.ndarray, "row vocab"] | None:
    """Return the mask of the next tokens, or None where the environment sets none.

    Rows without a mask of their own, by gymnasium's ``_action_mask``, may write anything.

    Raises:
        ValueError: if the mask is not one row of zeros and ones per row of the environment.
    """
    if "action_mask" not in infos:
        return None
    mask = np.asarray(infos["action_mask"])
    if mask.ndim != 2 or not (mask.dtype == np.bool_ or np.issubdtype(mask.dtype, np.integer)):
        raise ValueError(
            f"infos['action_mask'] is {mask.dtype} of shape {mask.shape}; expected integers or booleans of shape "
            "(rows, vocabulary)."
        )
    allowed: Bool[np.ndarray, "row vocab"] = mask != 0
    if "_action_mask" in infos:
        allowed = allowed | ~np.asarray(infos["_action_mask"], dtype=bool)[:, None]
    return allowed


def forbid(
    logits: Float[Tensor, "*place vocab"], allowed: Bool[Tensor, "*place known"] | None
) -> Float[Tensor, "*place vocab"]:
    """Return the logits with minus infinity at forbidden tokens, ids beyond the mask's included.

    A mask of no tokens at all is no mask, as in ``Rollout.allowed``.
    """
    if allowed is None or allowed.shape[-1] == 0:
        return logits
    missing = logits.shape[-1] - allowed.shape[-1]
    return logits.masked_fill(~torch.nn.functional.pad(allowed, (0, missing), value=False), float("-inf"))
