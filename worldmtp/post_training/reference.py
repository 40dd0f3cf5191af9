"""The reference policy of preference and reinforcement learning: a frozen copy of the trunk as it is.

TRL builds it from the model's path, so a model made in memory has none, one changed since it was loaded gets another
policy than its own, and a class that transformers does not know fails. Heads have no part in a reference.
"""

import copy

from transformers import PreTrainedModel

from worldmtp.model import MTPModel


def frozen_reference(model: MTPModel) -> PreTrainedModel:
    """Return a copy of the trunk, adapters included, in evaluation mode and without gradients."""
    return copy.deepcopy(model.trunk).eval().requires_grad_(False)
