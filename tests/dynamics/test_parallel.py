"""Parallel heads as an action-blind world model: what each depth foresees, whatever is done."""

import pytest
import torch

from worldmtp.dynamics import (
    ParallelWorldModel,
    WorldModel,
    acting_policy,
    check_action_conditional,
    imagine,
    make_world_model,
)

EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("head", ["medusa", "parallel"])
@torch.no_grad()
def test_a_state_is_its_depths_latent_and_the_prefix_is_all_it_knows(head, side, make_model, make_text):
    model = make_model("llama", head, depth=4)
    input_ids, mask, starts = make_text(side)
    rows, positions = torch.tensor([0, 1, 2, 0]), starts[[0, 1, 2, 0]] + torch.tensor([2, 1, 0, 4])
    world = make_world_model("mtp_parallel", model, torch.Generator())
    assert isinstance(world, WorldModel)
    assert (world.action_conditional, world.max_horizon) == (False, 3)
    state = world.encode(input_ids, mask, rows, positions)
    for depth in range(1, 5):
        for n in range(4):
            prefix = input_ids[rows[n], starts[rows[n]] : positions[n] + 1][None]
            expected = model(prefix)
            torch.testing.assert_close(state.latent[n], expected.hidden_states[depth - 1][0, -1], **EXACT)
            logits = world.predict(state).logits[n]
            torch.testing.assert_close(logits, expected.depth_logits[depth - 1][0, -1], **EXACT)
        if depth < 4:
            state = world.step(state, torch.tensor([depth, 0, 5, 7]))


@torch.no_grad()
def test_actions_change_nothing_and_branches_follow_their_rows(make_model, make_text):
    world = ParallelWorldModel(make_model("gpt2", "medusa", depth=3))
    root = world.encode(*make_text("right")[:2])
    one, other = (world.step(root, torch.full((3,), action)) for action in (1, 2))
    assert torch.equal(one.latent, other.latent)
    assert not torch.allclose(one.latent, root.latent)
    chosen = one.select(torch.tensor([2, 2, 0]))
    assert len(chosen) == 3
    assert torch.equal(chosen.latent, one.latent[[2, 2, 0]])


@torch.no_grad()
def test_it_can_be_rolled_out_and_not_asked_what_if(make_model, make_text):
    world = ParallelWorldModel(make_model("llama", "medusa", depth=3))
    root = world.encode(*make_text("right")[:2])
    rolled = imagine(world, root, 2, acting_policy(1.0), None)
    # Greedy: each depth's own most likely token, independent of the one before.
    state = root
    for h in range(2):
        assert torch.equal(rolled.actions[:, h], world.predict(state).logits.argmax(dim=-1))
        state = world.step(state, torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match="ParallelWorldModel predicts the policy's average future and cannot answer"):
        check_action_conditional(world)


def test_its_horizon_ends_with_its_depths(make_model, make_text):
    world = ParallelWorldModel(make_model("llama", "medusa", depth=2))
    root = world.encode(*make_text("right")[:2])
    with pytest.raises(ValueError, match="horizon=2 exceeds the 1 steps"):
        imagine(world, root, 2, acting_policy(1.0), None)
    state = world.step(root, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"step 2 exceeds the 1 steps these heads can take; train .* depth=3"):
        world.step(state, torch.zeros(3, dtype=torch.long))


def test_heads_of_another_kind_or_stride_are_refused(make_model):
    with pytest.raises(TypeError, match=r"head='sequential' is action-conditional.*use world model 'mtp'"):
        ParallelWorldModel(make_model("llama", "sequential", depth=2))
    with pytest.raises(ValueError, match=r"stride=2: depth k foresees token t \+ 1 \+ 2 \(k - 1\)"):
        ParallelWorldModel(make_model("llama", "medusa", depth=3, stride=2))
