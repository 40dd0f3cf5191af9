"""Search over real heads and trunks, against one that encodes every prefix anew."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from worldmtp.dynamics import acting_policy, make_world_model
from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.states import StateTable
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.search import SearchConfig, gumbel_muzero_policy, muzero_policy

VOCAB, LENGTH, ROWS = 11, 5, 3
POLICY = acting_policy(1.0)


@pytest.fixture
def model(tiny_trunk: Callable[..., PreTrainedModel]) -> MTPModel:
    trunk = tiny_trunk("llama", vocab_size=VOCAB, hidden_size=16, dtype=torch.float64)
    config = MTPConfig(head="sequential", depth=4, value_range=(0.0, 1.0), reward_range=(0.0, 1.0))
    model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # world heads start at zero; here they must tell latents apart
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.fixture
def text() -> tuple[Tensor, Tensor]:
    ids = torch.randint(VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    return ids, torch.ones_like(ids, dtype=torch.bool)


@dataclass(frozen=True)
class Written(StateTable):
    """Whole texts, padded on the right, and their lengths."""

    ids: Int[Tensor, "state length"]
    lengths: Int[Tensor, " state"]

    @property
    def latent(self) -> Float[Tensor, "state 1"]:
        return self.lengths[:, None].double()


class Reencoding:
    """The trunk without a cache: each state is its text, read from the first token on."""

    action_conditional, max_horizon, models_replies = True, None, False

    def __init__(self, oracle: Any) -> None:
        self.oracle = oracle

    def encode(self, ids: Tensor, mask: Tensor, *_: Any, **__: Any) -> Written:
        return Written(ids, mask.sum(dim=1))

    def step(self, state: Written, tokens: Int[Tensor, " state"]) -> Written:
        longer = torch.nn.functional.pad(state.ids, (0, 1))
        return Written(longer.scatter(1, state.lengths[:, None], tokens[:, None]), state.lengths + 1)

    def predict(self, state: Written, with_logits: bool = True) -> Prediction:
        mask = torch.arange(state.ids.shape[1]) < state.lengths[:, None]
        found: Prediction = self.oracle.predict(self.oracle.encode(state.ids, mask), with_logits)
        return found


@pytest.mark.parametrize("policy", [gumbel_muzero_policy, muzero_policy])
def test_the_cached_trunk_is_searched_like_the_whole_text(
    policy: Callable[..., Any], model: MTPModel, text: tuple[Tensor, Tensor]
) -> None:
    oracle = make_world_model("oracle", model, torch.Generator())
    config, found = SearchConfig(num_simulations=12, max_depth=4, width=5), []
    with torch.no_grad():
        for world_model in (oracle, Reencoding(oracle)):
            root = world_model.encode(*text)
            found.append(policy(world_model, root, POLICY, config, torch.Generator().manual_seed(3)))
    cached, anew = found
    assert torch.equal(cached.tree.children, anew.tree.children)
    assert torch.equal(cached.tree.visits, anew.tree.visits)
    torch.testing.assert_close(cached.tree.values, anew.tree.values, atol=1e-9, rtol=0)
    torch.testing.assert_close(cached.weights, anew.weights, atol=1e-7, rtol=0)


def test_heads_are_searched_as_deep_as_they_go(model: MTPModel, text: tuple[Tensor, Tensor]) -> None:
    world_model = make_world_model("mtp", model, torch.Generator())
    with torch.no_grad():
        root = world_model.encode(*text)
    config = SearchConfig(num_simulations=24, width=VOCAB)
    found = gumbel_muzero_policy(world_model, root, POLICY, config, torch.Generator().manual_seed(0))
    nodes = found.tree
    depth = torch.zeros_like(nodes.parents)
    for node in range(1, nodes.parents.shape[1]):  # a parent is older than its child
        parents = nodes.parents[:, node].clamp_min(0)
        depth[:, node] = torch.where(nodes.parents[:, node] < 0, 0, depth[torch.arange(ROWS), parents] + 1)
    assert depth.max() == world_model.max_horizon == 3
    assert set(found.actions.tolist()) <= set(range(VOCAB))
    # What the first simulation found is what the heads say of that token after that prefix.
    slots = nodes.slots[:, 1]
    tokens = nodes.tokens[torch.arange(ROWS), 0, slots]
    with torch.no_grad():
        said = world_model.predict(world_model.step(root, tokens))
    torch.testing.assert_close(nodes.child_rewards[torch.arange(ROWS), 0, slots], said.reward)
    torch.testing.assert_close(nodes.raw_values[:, 1], said.value)


def test_states_that_grow_with_depth_are_counted_before_they_are_kept(
    model: MTPModel, text: tuple[Tensor, Tensor]
) -> None:
    world_model = make_world_model("oracle", model, torch.Generator())
    with torch.no_grad():
        root = world_model.encode(*text)
        child = world_model.step(root, torch.zeros(ROWS, dtype=torch.long))
    # A token more: keys and values of each layer, and no copy of the text that all share.
    trunk = model.trunk.config
    token = 2 * trunk.num_hidden_layers * trunk.num_key_value_heads * trunk.head_dim * 8
    assert child.row_bytes - root.row_bytes == token
    nodes, arrays = ROWS * 3, 4 * (3 * 8 + 4 * 8) + 3 * 8 + 2 * 8
    fits = nodes * (arrays + child.row_bytes)
    config = SearchConfig(num_simulations=2, max_depth=1, width=4, max_bytes=fits)
    gumbel_muzero_policy(world_model, root, POLICY, config, torch.Generator())
    with pytest.raises(ValueError, match=f"{child.row_bytes:,} of the world model's state"):
        gumbel_muzero_policy(world_model, root, POLICY, replace(config, max_bytes=fits - 1), torch.Generator())


def test_parallel_heads_are_refused(tiny_trunk: Callable[..., PreTrainedModel], text: tuple[Tensor, Tensor]) -> None:
    trunk = tiny_trunk("llama", vocab_size=VOCAB, hidden_size=16, dtype=torch.float64)
    model = MTPModel.from_trunk(trunk, MTPConfig(head="medusa", depth=3), torch.Generator().manual_seed(0)).eval()
    world_model = make_world_model("mtp_parallel", model, torch.Generator())
    with torch.no_grad():
        root = world_model.encode(*text)
    with pytest.raises(TypeError):
        gumbel_muzero_policy(world_model, root, POLICY, SearchConfig(), torch.Generator())
