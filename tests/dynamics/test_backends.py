"""World model back-ends on tiny trunks, in float64: imagined equals teacher-forced where it must."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from worldmtp.dynamics import (
    MTPWorldModel,
    OracleWorldModel,
    ShuffledWorldModel,
    WorldModel,
    acting_policy,
    imagine,
    make_world_model,
)
from worldmtp.dynamics.placebo import other_actions
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

DEPTH, LENGTH = 5, 9
SAMPLED = acting_policy(1.0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_the_oracle_is_the_trunk_on_the_longer_prefix(kind: str, side: str, make_model, make_text) -> None:
    model = make_model(kind)
    input_ids, mask, starts = make_text(side)
    rows, positions = torch.tensor([0, 1, 2, 0]), starts[[0, 1, 2, 0]] + torch.tensor([2, 1, 0, 4])
    state = OracleWorldModel(model).encode(input_ids, mask, rows, positions)
    taken = torch.tensor([[3, 1], [4, 1], [5, 9], [2, 6]])
    for h in range(2):
        state = OracleWorldModel(model).step(state, taken[:, h])
        for n in range(4):
            prefix = input_ids[rows[n], starts[rows[n]] : positions[n] + 1]
            text = torch.cat([prefix, taken[n, : h + 1]])[None]
            plain = model.trunk.base_model(input_ids=text).last_hidden_state[0, -1]
            torch.testing.assert_close(state.latent[n], plain, atol=1e-10, rtol=0)


@pytest.mark.parametrize("backend", ["mtp", "oracle", "shuffled", "identity"])
@torch.no_grad()
def test_what_moves_a_state(backend: str, make_model, make_text) -> None:
    """Another action gives another latent, except where nothing moves by construction."""
    model = make_model("qwen3")
    input_ids, mask, _ = make_text("right")
    world = make_world_model(backend, model, torch.Generator().manual_seed(0))
    assert isinstance(world, WorldModel)
    root = world.encode(input_ids, mask)
    one, other = world.step(root, torch.tensor([1, 1, 1])), world.step(root, torch.tensor([2, 2, 2]))
    assert torch.equal(one.latent, other.latent) == (backend == "identity")
    assert torch.equal(one.latent, root.latent) == (backend == "identity")


@pytest.mark.parametrize(
    ("backend", "head", "forwards"),
    [
        ("mtp", "sequential", 0),
        ("mtp", "eagle", 0),
        ("mtp", "latent", 0),
        ("mtp_parallel", "linear", 0),
        ("identity", "sequential", 0),
        ("shuffled", "sequential", 0),
        ("oracle", "sequential", 1),  # its cache is not among the features
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_features_at_hand_save_the_trunks_forward_and_change_nothing(
    backend: str, head: str, forwards: int, side: str, make_model, make_text
) -> None:
    model = make_model("llama", head)
    input_ids, mask, starts = make_text(side)
    rows = torch.tensor([0, 2, 1, 0])
    positions = starts[rows] + torch.tensor([3, 4, 0, 5])
    features, count = model.trunk_features(input_ids, mask), []
    worlds = [make_world_model(backend, model, torch.Generator().manual_seed(0)) for _ in range(2)]
    alone = worlds[0].encode(input_ids, mask, rows, positions)
    model.base_model.register_forward_hook(lambda *args: count.append(1))
    shared = worlds[1].encode(input_ids, mask, rows, positions, features)
    assert len(count) == forwards
    for action in (None, 4, 7):
        if action is not None:
            alone = worlds[0].step(alone, torch.tensor([action, 1, 2, 3]))
            shared = worlds[1].step(shared, torch.tensor([action, 1, 2, 3]))
        one, other = worlds[0].predict(alone), worlds[1].predict(shared)
        for name in ("logits", "reward", "continuation", "value"):
            assert torch.equal(getattr(one, name), getattr(other, name)), (name, action)


@torch.no_grad()
def test_shuffled_moves_by_other_actions(make_model, make_text) -> None:
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    true = MTPWorldModel(model)
    world = ShuffledWorldModel(true, torch.Generator().manual_seed(4), vocab_size=5)
    moved = world.step(world.encode(input_ids, mask), torch.tensor([1, 2, 3]))
    given = other_actions(torch.tensor([1, 2, 3]), 5, torch.Generator().manual_seed(4))
    torch.testing.assert_close(moved.latent, true.step(true.encode(input_ids, mask), given).latent)


@pytest.mark.parametrize("actions", [[1, 2, 3, 4], [1, 1, 2, 2, 2, 3], [1, 1, 2, 2], [4, 3, 3, 0, 3, 1, 0, 2]])
def test_other_actions_are_the_batchs_and_none_is_a_rows_own(actions: list[int]) -> None:
    """A permutation for every seed, and not the same for all."""
    own, seen = torch.tensor(actions), set()
    for seed in range(50):
        given = other_actions(own, 5, torch.Generator().manual_seed(seed))
        assert sorted(given.tolist()) == sorted(actions)
        assert bool((given != own).all()), (seed, given)
        seen.add(tuple(given.tolist()))
    assert len(seen) > 1 or len(set(actions)) == 2


@pytest.mark.parametrize("actions", [[2], [1, 1, 1], [3, 3, 3, 0], [0, 0, 0, 0, 1, 2]])
def test_where_most_share_an_action_others_come_from_the_vocabulary(actions: list[int]) -> None:
    """One row, all alike, or more than half: no permutation changes them all."""
    own, seen = torch.tensor(actions), set()
    for seed in range(100):
        given = other_actions(own, 4, torch.Generator().manual_seed(seed))
        assert bool((given != own).all()), (seed, given)
        seen |= set(given[own == own.mode().values].tolist())
    # Each of three other tokens is missed in 100 draws with probability (2/3)^100 < 1e-17.
    assert seen == set(range(4)) - {int(own.mode().values)}


@torch.no_grad()
def test_one_state_of_the_placebo_is_not_the_model(make_model, make_text) -> None:
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    true, placebo = MTPWorldModel(model), make_world_model("shuffled", model, torch.Generator().manual_seed(0))
    root, action = true.encode(input_ids, mask).select(torch.tensor([0])), torch.tensor([3])
    assert not torch.equal(true.step(root, action).latent, placebo.step(root, action).latent)
    with pytest.raises(ValueError, match="vocab_size=1 has no other action"):
        ShuffledWorldModel(true, torch.Generator(), vocab_size=1)


@torch.no_grad()
def test_imagined_rollouts_follow_their_own_actions(make_model, make_text) -> None:
    """Greedy imagination, replayed step by step by hand; logits are asked for only where somebody acts."""
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    world = MTPWorldModel(model)
    root = world.encode(input_ids, mask)
    imagined = imagine(world, root, 3, SAMPLED, None)
    state, alive = root, torch.ones(3, dtype=torch.float64)
    for h in range(3):
        logits = model.logits_of(state.latent)
        assert torch.equal(imagined.actions[:, h], logits.argmax(dim=-1))
        chosen = logits.log_softmax(dim=-1).max(dim=-1).values
        torch.testing.assert_close(imagined.logprobs[:, h], chosen)
        torch.testing.assert_close(imagined.alive[:, h], alive)
        state = world.step(state, imagined.actions[:, h])
        read = model.world_heads(state.latent)
        torch.testing.assert_close(imagined.continuations[:, h], read.continuation_logits.softmax(-1)[:, 1])
        bins = torch.linspace(-1, 1, 2 * model.config.num_value_bins - 1, dtype=torch.float64)
        torch.testing.assert_close(imagined.values[:, h + 1], (read.value_logits.softmax(-1) * bins).sum(-1))
        torch.testing.assert_close(imagined.rewards[:, h], (read.reward_logits.softmax(-1) * bins).sum(-1))
        alive = alive * imagined.continuations[:, h]
    assert world.predict(root, with_logits=False).logits is None


def test_sampling_follows_its_generator(make_model, make_text) -> None:
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    world = OracleWorldModel(model)
    rolled = [
        imagine(world, world.encode(input_ids, mask), 4, SAMPLED, torch.Generator().manual_seed(seed)).actions
        for seed in (0, 0, 1)
    ]
    assert torch.equal(rolled[0], rolled[1])
    assert not torch.equal(rolled[0], rolled[2])


def test_a_horizon_beyond_the_heads_is_refused(make_model, make_text) -> None:
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    world = MTPWorldModel(model)
    with pytest.raises(ValueError, match=r"horizon=5 exceeds the 4 steps.*lower the horizon or train .* depth=6"):
        imagine(world, world.encode(input_ids, mask), 5, SAMPLED, None)
    state = world.encode(input_ids, mask)
    for _ in range(4):
        state = world.step(state, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="step 5 exceeds the 4 steps"):
        world.step(state, torch.zeros(3, dtype=torch.long))


def test_an_unknown_backend_names_the_nearest(make_model) -> None:
    with pytest.raises(ValueError, match=r"world_model\.backend='orcale' is unknown; did you mean 'oracle'\?"):
        make_world_model("orcale", make_model("llama"), torch.Generator())


def test_half_of_a_root_is_refused(make_model, make_text) -> None:
    input_ids, mask, _ = make_text("right")
    with pytest.raises(ValueError, match="root_rows and root_positions go together"):
        MTPWorldModel(make_model("llama")).encode(input_ids, mask, torch.tensor([0]))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("window", [3, 5])
def test_the_oracle_is_the_trunk_also_where_its_attention_slides(window: int, side: str, make_text) -> None:
    """Roots at every token of every row: latents after 0 .. 3 steps are those of a pass over the longer text alone."""
    config = MistralConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=window,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = MistralForCausalLM(config).double().eval()
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=2), torch.Generator().manual_seed(0)).eval()
    input_ids, mask, starts = make_text(side)
    rows, positions = torch.nonzero(mask, as_tuple=True)
    actions = torch.randint(11, (len(rows), 3), generator=torch.Generator().manual_seed(3))
    world = make_world_model("oracle", model, torch.Generator())
    with torch.no_grad():
        state = world.encode(input_ids, mask, rows, positions)
        for step in range(4):
            if step:
                state = world.step(state, actions[:, step - 1])
            if step == 2:  # a choice among states that have already been moved
                kept = torch.arange(len(rows)).flip(0)[::2]
                state, actions, rows, positions = state.select(kept), actions[kept], rows[kept], positions[kept]
            for n, (row, last) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
                text = torch.cat([input_ids[row, int(starts[row]) : last + 1], actions[n, :step]])
                alone = trunk.model(text[None]).last_hidden_state[0, -1]
                torch.testing.assert_close(state.latent[n], alone, atol=1e-10, rtol=0)
