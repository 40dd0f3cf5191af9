"""World models by name."""

from collections.abc import Callable
from typing import Any

import torch

from worldmtp.choices import check_choice
from worldmtp.dynamics.mtp import MTPWorldModel
from worldmtp.dynamics.oracle import OracleWorldModel
from worldmtp.dynamics.parallel import ParallelWorldModel
from worldmtp.dynamics.placebo import IdentityWorldModel, ShuffledWorldModel
from worldmtp.dynamics.protocol import WorldModel
from worldmtp.model import MTPModel

WORLD_MODELS: dict[str, Callable[[MTPModel, torch.Generator], WorldModel[Any]]] = {
    "mtp": lambda model, generator: MTPWorldModel(model),
    "mtp_parallel": lambda model, generator: ParallelWorldModel(model),
    "oracle": lambda model, generator: OracleWorldModel(model),
    "identity": lambda model, generator: IdentityWorldModel(model),
    "shuffled": lambda model, generator: ShuffledWorldModel(MTPWorldModel(model), generator, model.num_tokens),
}
"""Back-ends; the generator serves those that are random by construction."""


def make_world_model(backend: str, model: MTPModel, generator: torch.Generator) -> WorldModel[Any]:
    """A world model back-end on ``model``.

    Raises:
        ValueError: no such back-end, or heads whose depths leap over tokens.
        TypeError: the model's heads are of the other kind; the message names the back-end for them.
    """
    check_backend(backend)
    return WORLD_MODELS[backend](model, generator)


def check_backend(backend: str) -> None:
    """Whether there is a back-end of that name.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    check_choice("world_model.backend", backend, sorted(WORLD_MODELS))
