"""Training by ``imagination=search`` through replies: roots as acting has them, plain PPO to the bit, refusals."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states
from worldmtp.agents.imagination.searched_world import ThroughReplies
from worldmtp.agents.rollout import collect_rollout
from worldmtp.agents.search_config import ActingSearch, SearchTargetConfig
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.agents.world_search import WorldSearchPolicy
from worldmtp.dynamics import make_world_model
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.world_replies import WorldReplies
from worldmtp.envs.wrappers.action_mask import VectorActionMask
from worldmtp.model import MTPModel
from worldmtp.search import ConversationDynamics, SearchConfig

MakeModel = Callable[..., MTPModel]
MakeEnv = Callable[..., TextVectorEnv]
REPLIES = ReplyModelConfig(num_members=2, hidden_size=8, num_heads=2, max_reply=2, num_updates=8)


def masked(env: TextVectorEnv) -> TextVectorEnv:
    return VectorActionMask(env, alphabet="abc", forbid_eos=True)


def make_trainer(
    env: TextVectorEnv,
    model: MTPModel,
    use: str = "search",
    backend: str = "mtp",
    ppo: PPOConfig | None = None,
    **search: Any,
) -> ImaginationTrainer:
    search = {"num_simulations": 6, "gate_batches": 2, "through_replies": True} | search
    return ImaginationTrainer(
        model,
        env,
        RolloutConfig(4, 8, 1),
        ppo or PPOConfig(learning_rate=1e-2, kl_coef=0.0, gamma=0.9),
        WorldModelConfig(backend=backend, replies=REPLIES),
        ImaginationConfig(use=use, horizon=3, search=SearchTargetConfig(**search)),
        seed=0,
    )


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.mark.parametrize("max_turn", [1, 2])
def test_roots_are_those_that_acting_searches_from(max_turn: int, steps_env: MakeEnv, tiny_model: MakeModel) -> None:
    """A search acts through the real world's replies; read off the rollout, all its roots are found again."""
    model = tiny_model()
    env = masked(steps_env(3, max_turn=max_turn, max_new=8))
    world_model = WorldModelConfig(backend="oracle", replies=REPLIES)
    begun: list[tuple[Any, Any]] = []

    class Noting(ConversationDynamics):
        def begin(self, inner: Any, *where: Any) -> Any:
            begun.append((inner, super().begin(inner, *where).talk))
            return super().begin(inner, *where)

    how = ActingSearch("gumbel", "world", SearchConfig(4, width=3))
    policy = WorldSearchPolicy(
        make_world_model("oracle", model, torch.Generator()), WorldReplies(env), env, 1.0, how, torch.Generator()
    )
    policy._dynamics.__class__ = Noting
    rollout = collect_rollout(env, policy, torch.Generator().manual_seed(1), {"split": "train", "group_size": 1})
    generators = {name: torch.Generator() for name in ("imagination", "world_model", "placebo")}
    world = ThroughReplies(env, model, Acting.of(env, 1.0, (0.0, 1.0)), world_model, generators)
    states = acted_states(world.inner, rollout)
    rows, steps = torch.nonzero(rollout.step_mask, as_tuple=True)
    assert int(steps.max()) >= max_turn
    letters = env.tokenizer.encode("abc")
    allowed = world.policy(torch.zeros(1, env.tokenizer.vocab_size)).isfinite()[0]
    assert allowed.nonzero()[:, 0].tolist() == letters
    _, roots = world.begin(rollout, states, rows, steps)
    for step, (inner, talk) in enumerate(begun):
        at = (steps == step).nonzero()[:, 0]
        found = roots.talk.select(at)
        for name in ("room", "num_left", "turns_left", "said", "reply", "reward", "is_over"):
            assert torch.equal(getattr(found, name), getattr(talk, name)), (step, name)
        torch.testing.assert_close(roots.inner.select(at).latent, inner.latent, atol=1e-5, rtol=0)
    assert len(begun) == int(steps.max()) + 1


@pytest.mark.parametrize("search", [{"coef": 0.0}, {"num_simulations": 0}, {"gate_batches": 100}])
def test_without_a_search_or_behind_a_shut_gate_it_is_plain_ppo_to_the_bit(
    search: dict[str, Any], steps_env: MakeEnv, tiny_model: MakeModel
) -> None:
    """All weights, value and reward heads among them: what is learnt of replies is nobody else's."""
    off, on = make_trainer(steps_env(8), tiny_model(), "off"), make_trainer(steps_env(8), tiny_model(), **search)
    for _ in range(3):
        plain, searched = numbers(off.step()[0]), numbers(on.step()[0])
        added = {name for name in searched if name.startswith(("imagination/", "world_model/"))}
        assert {name: value for name, value in searched.items() if name not in added} == {
            name: value for name, value in plain.items() if name not in added
        }
    for (name, one), other in zip(off.model.named_parameters(), on.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert ("imagination/search_skill" in searched) == ("gate_batches" in search)


@pytest.mark.parametrize("backend", ["mtp", "oracle", "shuffled", "identity"])
def test_behind_an_open_gate_it_learns_from_what_is_foreseen_where_actions_are_masked(
    backend: str, steps_env: MakeEnv, tiny_model: MakeModel
) -> None:
    trainer = make_trainer(masked(steps_env(8)), tiny_model(), backend=backend, gated=False)
    metrics = [trainer.step()[0] for _ in range(4)]
    # Where replies are learnt, the first batch is all that there is to learn from.
    assert [one.get("imagination/gate_open") for one in metrics] == (
        [0, 0, 1, 1] if backend == "oracle" else [None, 0, 0, 1]
    )
    assert ["losses/search" in one for one in metrics] == [one.get("imagination/gate_open") == 1 for one in metrics]
    assert np.isfinite([one.get("losses/search", 0.0) for one in metrics]).all()
    assert ("world_model/reply_nats" in metrics[-1]) == (backend != "oracle")


def test_a_run_goes_on_from_a_checkpoint(steps_env: MakeEnv, tiny_model: MakeModel) -> None:
    trainer = make_trainer(steps_env(8), tiny_model(), gated=False, coef=3.0)
    for _ in range(4):
        trainer.step()
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    other = make_trainer(steps_env(8), tiny_model(), gated=False, coef=3.0)
    other.load_state_dict(torch.load(file, weights_only=False))
    one, two = numbers(trainer.step()[0]), numbers(other.step()[0])
    assert one == two
    assert "losses/search" in two


def test_the_real_world_tells_actions_apart_and_one_without_words_does_not(
    steps_env: MakeEnv, tiny_model: MakeModel
) -> None:
    """One turn ahead the real reply says what each letter pays; who hears no words foresees one reply to all."""
    skills = {}
    for backend in ("oracle", "identity"):
        trainer = make_trainer(
            masked(steps_env(8)), tiny_model(), backend=backend, gate_batches=100, num_simulations=12, num_states=64
        )
        metrics = [trainer.step()[0] for _ in range(5)]
        skills[backend] = float(np.mean([one["imagination/search_skill"] for one in metrics[1:]]))
    assert skills["oracle"] > 0.3
    assert abs(skills["identity"]) < skills["oracle"] / 2


class TestRefusals:
    def test_nobody_replies(self, tiny_model: MakeModel, text_env: Callable[[int], TextVectorEnv]) -> None:
        message = r"through_replies=true goes on through what a world replies.*through_replies=false\.$"
        with pytest.raises(ValueError, match=message):
            make_trainer(text_env(8), tiny_model())

    def test_another_backend(self, steps_env: MakeEnv, tiny_model: MakeModel) -> None:
        with pytest.raises(ValueError, match=r"world_model\.backend with imagination\.search\.through_replies=true"):
            make_trainer(steps_env(8), tiny_model(), backend="mtp_parallel")

    def test_what_is_paid_is_taken_back(self, steps_env: MakeEnv, tiny_model: MakeModel) -> None:
        with pytest.raises(ValueError, match="takes back what a conversation was paid"):
            make_trainer(steps_env(8, truncation_score="zero"), tiny_model())

    def test_truncated_episodes_go_on(self, steps_env: MakeEnv, tiny_model: MakeModel) -> None:
        with pytest.raises(ValueError, match="bootstrap_truncated=false"):
            make_trainer(steps_env(8), tiny_model(), ppo=PPOConfig(bootstrap_truncated=True))

    def test_masks_end_a_search_of_the_turn_alone(self, steps_env: MakeEnv, tiny_model: MakeModel) -> None:
        with pytest.raises(ValueError, match="no mask is known"):
            make_trainer(masked(steps_env(8)), tiny_model(), through_replies=False)
