"""World model back-ends on tiny trunks, in float64: imagined equals teacher-forced where it must."""

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from worldmtp.config import MTPConfig
from worldmtp.dynamics import (
    IdentityWorldModel,
    MTPWorldModel,
    OracleWorldModel,
    ShuffledWorldModel,
    WorldModel,
    imagine,
    make_world_model,
)
from worldmtp.dynamics.rollout import as_sampled
from worldmtp.model import MTPModel

VOCAB, DEPTH, LENGTH = 11, 5, 9
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def make_trunk(kind: str) -> PreTrainedModel:
    rope = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_key_value_heads=1, **rope))
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB, num_key_value_heads=1, head_dim=8, **rope))
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, **NO_DROPOUT))
        case _:
            return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCAB, **rope))


def make_model(kind: str) -> MTPModel:
    config = MTPConfig(depth=DEPTH, value_range=(0.0, 1.0), reward_range=(0.0, 1.0))
    model = MTPModel.from_trunk(make_trunk(kind).double(), config, torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # world heads start at zero; here they must tell latents apart
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def make_text(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Three rows of 9, 7 and 5 tokens, and where each row starts."""
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(VOCAB, (3, LENGTH), generator=generator)
    index, lengths = torch.arange(LENGTH), torch.tensor([9, 7, 5])
    if side == "right":
        return input_ids, index < lengths[:, None], torch.zeros(3, dtype=torch.long)
    return input_ids, index >= (LENGTH - lengths)[:, None], LENGTH - lengths


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_stepping_by_the_real_tokens_gives_the_teacher_forced_latents(kind: str, side: str) -> None:
    """The chained state after real actions is the depth-k latent of the forward pass, at every root that has them.

    Roots near the start of a row, where the window reaches before the text, are among them.
    """
    model = make_model(kind)
    input_ids, mask, starts = make_text(side)
    latents = model.latents(input_ids, mask)
    ends = starts + mask.sum(dim=1) - 1
    roots = [(b, p) for b in range(3) for p in range(int(starts[b]), int(ends[b]))]
    rows, positions = torch.tensor(roots).unbind(dim=1)
    state = MTPWorldModel(model).encode(input_ids, mask, rows, positions)
    torch.testing.assert_close(state.latent, latents[0][rows, positions])
    checked = 0
    for depth in range(2, DEPTH + 1):
        ahead = positions + depth - 1
        state = MTPWorldModel(model).step(state, input_ids[rows, ahead.clamp_max(LENGTH - 1)])
        inside = ahead <= ends[rows]
        torch.testing.assert_close(
            state.latent[inside], latents[depth - 1][rows[inside], positions[inside]], atol=1e-10, rtol=0
        )
        checked += int(inside.sum())
    assert checked > 40


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_the_oracle_is_the_trunk_on_the_longer_prefix(kind: str, side: str) -> None:
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


@torch.no_grad()
def test_branches_of_one_root_do_not_disturb_each_other() -> None:
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    world = MTPWorldModel(model)
    root = world.encode(input_ids, mask)
    actions = torch.tensor([[1, 2], [3, 4], [5, 6]])
    branched = root.select(torch.tensor([0, 1, 2]).repeat_interleave(2))
    together = world.step(world.step(branched, actions.flatten()), actions.flatten().flip(0))
    for row in range(6):
        alone = root.select(torch.tensor([row // 2]))
        alone = world.step(
            world.step(alone, actions.flatten()[row : row + 1]), actions.flatten().flip(0)[row : row + 1]
        )
        torch.testing.assert_close(together.latent[row], alone.latent[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("backend", ["mtp", "oracle", "shuffled", "identity"])
@torch.no_grad()
def test_what_moves_a_state(backend: str) -> None:
    """Another action gives another latent, except where nothing moves by construction."""
    model = make_model("qwen3")
    input_ids, mask, _ = make_text("right")
    world = make_world_model(backend, model, torch.Generator().manual_seed(0))
    assert isinstance(world, WorldModel)
    root = world.encode(input_ids, mask)
    one, other = world.step(root, torch.tensor([1, 1, 1])), world.step(root, torch.tensor([2, 2, 2]))
    assert torch.equal(one.latent, other.latent) == (backend == "identity")
    assert torch.equal(one.latent, root.latent) == (backend == "identity")


@torch.no_grad()
def test_shuffled_moves_by_another_rows_action() -> None:
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    true = MTPWorldModel(model)
    world = ShuffledWorldModel(true, torch.Generator().manual_seed(4))
    actions = torch.tensor([1, 2, 3])
    permutation = torch.randperm(3, generator=torch.Generator().manual_seed(4))
    assert permutation.tolist() != [0, 1, 2]
    moved = world.step(world.encode(input_ids, mask), actions)
    expected = true.step(true.encode(input_ids, mask), actions[permutation])
    torch.testing.assert_close(moved.latent, expected.latent)


@torch.no_grad()
def test_imagined_rollouts_follow_their_own_actions() -> None:
    """Greedy imagination, replayed step by step by hand; logits are asked for only where somebody acts."""
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    world = MTPWorldModel(model)
    root = world.encode(input_ids, mask)
    imagined = imagine(world, root, 3)
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
        bins = torch.linspace(0, 1, model.config.num_value_bins, dtype=torch.float64)
        torch.testing.assert_close(imagined.values[:, h + 1], (read.value_logits.softmax(-1) * bins).sum(-1))
        torch.testing.assert_close(imagined.rewards[:, h], (read.reward_logits.softmax(-1) * bins).sum(-1))
        alive = alive * imagined.continuations[:, h]
    assert world.predict(root, with_logits=False).logits is None


def test_sampling_follows_its_generator() -> None:
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    world = OracleWorldModel(model)
    rolled = [
        world.imagine(world.encode(input_ids, mask), 4, as_sampled, torch.Generator().manual_seed(seed)).actions
        for seed in (0, 0, 1)
    ]
    assert torch.equal(rolled[0], rolled[1])
    assert not torch.equal(rolled[0], rolled[2])


def test_a_horizon_beyond_the_heads_is_refused() -> None:
    model = make_model("llama")
    input_ids, mask, _ = make_text("right")
    world = MTPWorldModel(model)
    with pytest.raises(ValueError, match=r"horizon=5 exceeds the 4 steps.*lower the horizon or train .* depth=6"):
        imagine(world, world.encode(input_ids, mask), 5)
    state = world.encode(input_ids, mask)
    for _ in range(4):
        state = world.step(state, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="step 5 exceeds the 4 steps"):
        world.step(state, torch.zeros(3, dtype=torch.long))


def test_parallel_dynamics_cannot_answer_what_if() -> None:
    class Parallel(IdentityWorldModel):
        action_conditional = False

    model = make_model("llama")
    world = Parallel(model)
    with pytest.raises(TypeError, match="predicts the policy's average future"):
        imagine(world, world.encode(*make_text("right")[:2]), 1)


def test_an_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"world model 'orcale' is unknown.*Did you mean 'oracle'"):
        make_world_model("orcale", make_model("llama"), torch.Generator())


def test_half_of_a_root_is_refused() -> None:
    input_ids, mask, _ = make_text("right")
    with pytest.raises(ValueError, match="root_rows and root_positions go together"):
        MTPWorldModel(make_model("llama")).encode(input_ids, mask, torch.tensor([0]))
