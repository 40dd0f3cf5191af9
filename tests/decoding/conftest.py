"""Small models whose random heads are right often enough, and ragged prompts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

PAD = 0


@pytest.fixture(scope="session")
def model_of(tiny_trunk) -> Callable[..., MTPModel]:
    """A float64 model: ``model_of(kind, head, depth)``; heads that would start as the identity are drawn instead."""

    def make(
        kind: str = "llama", head: str = "sequential", depth: int = 4, vocab_size: int = 7, seed: int = 0, **spec
    ) -> MTPModel:
        trunk = tiny_trunk(kind, vocab_size=vocab_size, dtype=torch.float64, seed=seed)
        init = {} if head in ("parallel", "sequential", "eagle") else {"head_init": "random"}
        config = MTPConfig(head=head, depth=depth, initializer_range=0.3, **init, **spec)
        return MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(seed)).eval()

    return make


@pytest.fixture(scope="session")
def ragged() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Prompts of 1 to ``longest`` tokens, the first of them that long, and their mask; padded left, or right."""

    def make(num_rows: int, longest: int, seed: int, right: bool = False, vocab_size: int = 7):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(1, longest + 1, size=num_rows)
        lengths[0] = longest
        ids = np.full((num_rows, longest), PAD)
        mask = np.zeros((num_rows, longest), dtype=np.int64)
        for row, length in enumerate(lengths):
            place = slice(0, length) if right else slice(longest - length, longest)
            ids[row, place] = generator.integers(2, vocab_size, size=length)
            mask[row, place] = 1
        return torch.from_numpy(ids), torch.from_numpy(mask)

    return make
