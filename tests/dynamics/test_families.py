"""Every action-conditional family as dynamics: imagined equals teacher-forced, whatever a depth attends to."""

import pytest
import torch

from worldmtp.dynamics import MTPWorldModel, acting_policy, imagine, make_world_model

DEPTH, LENGTH = 5, 9
EXACT = {"rtol": 0.0, "atol": 1e-10}
KINDS = ("llama", "qwen3", "gpt2", "gpt_neox")
FAMILIES = {
    "sequential": {"head": "sequential"},
    "sequential, before the norms": {"head": "sequential", "hidden_stage": "pre_norm", "recycle_stage": "pre_norm"},
    "latent": {"head": "latent"},
    "latent, a step for each depth": {
        "head": "latent",
        "share_depths": False,
        "hidden_stage": "pre_norm",
        "output_norm": "own",
        "recycle_stage": "pre_norm",
    },
    "hydra": {"head": "hydra", "unembedding": "own"},
    "eagle": {"head": "eagle"},
    "eagle, over the last state": {
        "head": "eagle",
        "feature_layers": (),
        "hidden_stage": "pre_norm",
        "share_depths": False,
        "recycle_stage": "post_norm",
        "unembedding": "own",
    },
}


@pytest.fixture(params=FAMILIES)
def heads(request):
    return FAMILIES[request.param]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_stepping_by_the_real_tokens_gives_the_teacher_forced_latents(kind, heads, make_model, make_text):
    """At every root that has them, near the start of a row too, with the padding on either side.

    Logits are those of the depth's own output layer.
    """
    model = make_model(kind, **heads)
    world = MTPWorldModel(model)
    checked = 0
    for side in ("left", "right"):
        input_ids, mask, starts = make_text(side)
        latents = model.latents(input_ids, mask)
        ends = starts + mask.sum(dim=1) - 1
        roots = [(b, p) for b in range(3) for p in range(int(starts[b]), int(ends[b]))]
        rows, positions = torch.tensor(roots).unbind(dim=1)
        state = world.encode(input_ids, mask, rows, positions)
        assert state.depths.present == (1,)
        torch.testing.assert_close(state.latent, latents[0][rows, positions], **EXACT)
        for depth in range(2, DEPTH + 1):
            ahead = positions + depth - 1
            state = world.step(state, input_ids[rows, ahead.clamp_max(LENGTH - 1)])
            inside = ahead <= ends[rows]
            expected = latents[depth - 1][rows[inside], positions[inside]]
            torch.testing.assert_close(state.latent[inside], expected, **EXACT)
            logits = model.output_layer(depth)(expected)
            torch.testing.assert_close(world.predict(state).logits[inside], logits, **EXACT)
            checked += int(inside.sum())
    assert checked > 80


@torch.no_grad()
def test_what_the_text_says_after_a_root_does_not_matter(heads, make_model, make_text):
    # Every key that has read a real token beyond the root must be left out or made anew.
    world = MTPWorldModel(make_model("llama", **heads))
    input_ids, mask, _ = make_text("right")
    other = input_ids.clone()
    other[:, 4:] = (other[:, 4:] + 3) % 11
    rows, positions = torch.arange(3), torch.tensor([3, 3, 3])
    actions = torch.tensor([[5, 1, 8], [2, 9, 4], [7, 7, 7], [1, 2, 3]])
    states = [world.encode(text, mask, rows, positions) for text in (input_ids, other)]
    for action in actions:
        states = [world.step(state, action) for state in states]
        torch.testing.assert_close(states[0].latent, states[1].latent, **EXACT)


@torch.no_grad()
def test_every_action_so_far_counts(heads, make_model, make_text):
    world = MTPWorldModel(make_model("qwen3", **heads))
    input_ids, mask, _ = make_text("left")
    root = world.encode(input_ids, mask)
    for changed in range(3):
        states = []
        for change in (0, 1):
            state = root
            for h in range(3):
                state = world.step(state, torch.full((3,), 4 + change * (h == changed)))
            states.append(state.latent)
        assert (states[0] - states[1]).abs().amax(dim=1).min() > 1e-6


@torch.no_grad()
def test_branches_of_one_root_do_not_disturb_each_other(heads, make_model, make_text):
    world = MTPWorldModel(make_model("llama", **heads))
    input_ids, mask, _ = make_text("right")
    root = world.encode(input_ids, mask)
    first, second = torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([6, 5, 4, 3, 2, 1])
    branched = world.step(root.select(torch.tensor([0, 1, 2]).repeat_interleave(2)), first)
    # Select again in the middle of a branch, out of order.
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    together = world.step(branched.select(order), second[order])
    assert len(together) == 6
    for place, row in enumerate(order.tolist()):
        alone = root.select(torch.tensor([row // 2]))
        alone = world.step(world.step(alone, first[row : row + 1]), second[row : row + 1])
        torch.testing.assert_close(together.latent[place], alone.latent[0], **EXACT)


@torch.no_grad()
def test_one_recursive_step_goes_on_beyond_its_depths(make_model, make_text):
    # The same weights with more depths are the same dynamics, so K = 7 says what K = 2 must do at steps 2 .. 6.
    short, long = make_model("llama", "latent", depth=2), make_model("llama", "latent", depth=7)
    short.load_state_dict(long.state_dict())
    input_ids, mask, _ = make_text("right")
    worlds = [MTPWorldModel(model) for model in (short, long)]
    assert [world.max_horizon for world in worlds] == [None, None]
    states = [world.encode(input_ids, mask) for world in worlds]
    for action in range(6):
        states = [world.step(state, torch.full((3,), action)) for world, state in zip(worlds, states, strict=True)]
        torch.testing.assert_close(states[0].latent, states[1].latent, **EXACT)
        first, second = (world.predict(state).logits for world, state in zip(worlds, states, strict=True))
        torch.testing.assert_close(first, second, **EXACT)
    assert imagine(worlds[0], worlds[0].encode(input_ids, mask), 9, acting_policy(1.0), None).actions.shape == (3, 9)


@pytest.mark.parametrize("head", ["sequential", "hydra", "eagle"])
def test_other_families_end_at_their_depths(head, make_model, make_text):
    world = MTPWorldModel(make_model("llama", head, depth=3))
    assert world.max_horizon == 2
    input_ids, mask, _ = make_text("right")
    state = world.encode(input_ids, mask)
    for _ in range(2):
        state = world.step(state, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"step 3 exceeds the 2 steps these heads can take; train .* depth=4"):
        world.step(state, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("head", ["sequential", "hydra", "eagle", "latent"])
@torch.no_grad()
def test_the_trunk_alone_can_be_read_and_not_stepped(head, make_model, make_text):
    model = make_model("gpt2", head, depth=1)
    world = MTPWorldModel(model)
    assert world.max_horizon == 0
    input_ids, mask, _ = make_text("left")
    root = world.encode(input_ids, mask)
    torch.testing.assert_close(world.predict(root).logits, model(input_ids, mask).logits[:, -1], **EXACT)
    with pytest.raises(ValueError, match="step 1 exceeds the 0 steps"):
        world.step(root, torch.zeros(3, dtype=torch.long))


def test_parallel_heads_are_sent_to_their_own_backend(make_model):
    model = make_model("llama", "medusa", depth=3)
    for backend in ("mtp", "shuffled"):
        with pytest.raises(TypeError, match=r"head='medusa' gives the policy-averaged marginal.*'mtp_parallel' for"):
            make_world_model(backend, model, torch.Generator())


def test_an_unknown_kind_of_attention_is_refused(make_model, monkeypatch):
    model = make_model("llama", depth=2)
    monkeypatch.setattr(type(model.heads), "attention", "both")
    with pytest.raises(ValueError, match=r"SequentialHead\.attention='both' is unknown; choose from \['none', 'depth'"):
        MTPWorldModel(model)
