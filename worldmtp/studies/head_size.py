"""Heads of a given number of parameters, for comparisons at equal size."""

import copy

import torch
from transformers import PreTrainedModel

from worldmtp.heads.block import resolve_head_block
from worldmtp.heads.registry import bind, head_class, make_head
from worldmtp.model.config import MTPConfig

_WIDTH_STEP = 8


def num_head_parameters(config: MTPConfig, trunk: PreTrainedModel) -> int:
    """Parameters of the heads that ``config`` describes on that trunk; none is allocated."""
    bound = bind(config, trunk.config, resolve_head_block(config.head_block, trunk))
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_head(bound, trunk).parameters())


def matched_width(config: MTPConfig, trunk: PreTrainedModel, num_parameters: int) -> MTPConfig:
    """``config`` with the largest inner width, in steps of 8, whose heads have at most ``num_parameters``.

    A family without an inner width is returned as it is: its size follows from the trunk's.

    Raises:
        ValueError: even the smallest width has more parameters.
    """
    if head_class(config.head).defaults(trunk.config.get_text_config()).head_width is None:
        return config

    def sized(steps: int) -> MTPConfig:
        candidate = copy.deepcopy(config)
        candidate.head_width = steps * _WIDTH_STEP
        return candidate

    if num_head_parameters(sized(1), trunk) > num_parameters:
        raise ValueError(
            f"num_parameters={num_parameters} is too few for head={config.head!r}, which has "
            f"{num_head_parameters(sized(1), trunk)} at its smallest width; raise it."
        )
    low, high = 1, 2
    while num_head_parameters(sized(high), trunk) <= num_parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if num_head_parameters(sized(middle), trunk) <= num_parameters else (low, middle)
    return sized(low)
