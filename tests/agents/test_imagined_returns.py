"""What is imagined is what acts: its temperature, and the ends of its turns."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.evaluation import root_imaginations
from worldmtp.agents.imagination.baseline import imagined_expansions
from worldmtp.agents.imagination.critic import LiveTokens, imagined_features
from worldmtp.agents.imagination.imagined_returns import Acting, Turns, acted_states, imagined_root_returns
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics import OracleWorldModel, TurnRoom, acting_policy, imagine
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.model import MTPModel

MakeRollout = Callable[..., Rollout]
EOS = 1
WIDE = (-1e3, 1e3)


@torch.no_grad()
def test_the_imagined_policy_is_the_acting_policy(tiny_model: Callable[..., MTPModel]) -> None:
    """Imagined and acted next-token distributions at temperature .3: total variation 0 on every text."""
    model = tiny_model().double()
    texts = torch.randint(2, 7, (5, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(texts, dtype=torch.bool)
    state = OracleWorldModel(model).encode(texts, mask)
    imagined = acting_policy(0.3)(OracleWorldModel(model).predict(state).logits)
    logits = model.trunk(input_ids=texts).logits[:, -1]
    assert float(((logits / 0.3).softmax(-1) - imagined.exp()).abs().sum(-1).max()) / 2 < 1e-12
    # TrunkPolicy acts in the first state, and its tokens have the log-probabilities of the imagined policy.
    obs = {"tokens": np.pad(texts.numpy(), ((0, 0), (0, 4))), "length": np.full((5, 1), 4)}
    acted = TrunkPolicy(model, 0.3).act(obs, {}, torch.Generator().manual_seed(1))
    torch.testing.assert_close(acted.logprobs.double(), imagined.gather(1, acted.actions[:, None])[:, 0])
    rolled = imagine(OracleWorldModel(model), state, 2, acting_policy(0.3), torch.Generator().manual_seed(2))
    torch.testing.assert_close(rolled.logprobs[:, 0], imagined.gather(1, rolled.actions[:, :1])[:, 0])


def test_a_temperature_that_cannot_act_is_refused() -> None:
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"temperature=.* must be positive and finite"):
            acting_policy(temperature)


def conversation(make: MakeRollout) -> Rollout:
    """Turns of at most two tokens: (4, EOS) and a reply of 6; (2, 3) and a reply of 6, 6; (5)."""
    row = {
        "prompt": [2, 3],
        "actions": [4, EOS, 2, 3, 5],
        "wrote": [[], [6], [], [6, 6], []],
        "rewards": [0.0, 0.5, 0.0, 0.25, 0.0],
        "end": "terminated",
    }
    return make([row], steps=6, length=12)


def test_room_in_a_turn_by_hand(hand_rollout: MakeRollout) -> None:
    rollout = conversation(hand_rollout)
    assert Turns(EOS, 2).room(rollout)[0, :5].tolist() == [2, 1, 2, 1, 2]
    # Of three tokens at most, the second turn would not have been over.
    with pytest.raises(ValueError, match=r"replied in the middle of 1 turns.*max_turn=3 tokens.*imagination=off"):
        Turns(EOS, 3).room(rollout)


class Digits:
    """A world that pays 1 for each token, is worth 10 per token so far, and whose likeliest token is the next digit."""

    action_conditional = True
    max_horizon = None
    models_replies = False

    def __init__(self, world: Any) -> None:
        self.encode, self.step, self._predict = world.encode, world.step, world.predict

    def predict(self, state: Any, with_logits: bool = True) -> Any:
        read = self._predict(state, True)
        ones = torch.ones_like(read.value)
        logits = 50.0 * torch.nn.functional.one_hot((state.last + 1) % 7, 7).float()
        return type(read)(logits if with_logits else None, ones, ones, 10.0 * state.total.float())


def test_imagination_stands_still_at_the_end_of_a_turn(total_world: Any) -> None:
    """From 4: tokens 5, 6, 0, 1 = EOS, 2. Rooms of 9 (EOS ends the turn) and 2 (6 ends it)."""
    world = Digits(total_world)
    state = world.encode(
        torch.tensor([[4], [4]]), torch.ones((2, 1), dtype=torch.bool), torch.arange(2), torch.zeros(2).long()
    )
    rolled = imagine(world, state, 5, acting_policy(1.0), None, TurnRoom(EOS, torch.tensor([9, 2])))
    assert rolled.actions[0].tolist() == [5, 6, 0, 1, 2]
    assert rolled.in_turn.tolist() == [[True] * 4 + [False], [True, True, False, False, False]]
    assert rolled.rewards.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    assert rolled.values.tolist() == [[40, 90, 150, 150, 160, 160], [40, 90, 150, 150, 150, 150]]
    # gamma 1/2: T_1 = 1 + 45, T_2 = 1.5 + 37.5, T_3 = 1.75 + 18.75, T_4 = 1.875 + 10; then nothing is added.
    expected = [[40, 46, 39, 20.5, 11.875, 11.875], [40, 46, 39, 39, 39, 39]]
    assert Acting(acting_policy(1.0), WIDE).returns(rolled, 0.5).tolist() == expected
    # No imagined return leaves the range of the values.
    assert Acting(acting_policy(1.0), (0.0, 45.0)).returns(rolled, 0.5)[1].tolist() == [40, 45, 39, 39, 39, 39]


def test_every_use_stops_at_the_border(hand_rollout: MakeRollout, total_world: Any) -> None:
    """The likeliest token is the last one plus one, gamma 1; turns of two tokens and a horizon of three."""
    rollout, world = conversation(hand_rollout), Digits(total_world)
    acting = Acting(acting_policy(1.0), WIDE, Turns(EOS, 2))
    states, generator = acted_states(world, rollout), torch.Generator().manual_seed(0)
    expansions, cut = imagined_expansions(world, acting, rollout, states, 3, 1, 1.0, 64, generator)
    # Every turn has room for 2, 1, 2, 1, 2 tokens: horizons beyond repeat what the border is worth.
    assert cut == 1.0
    for state, room in enumerate([2, 1, 2, 1, 2]):
        assert expansions[state, room:].unique().numel() == 1, state
    roots = root_imaginations(world, acting, rollout, 3, 1, PPOConfig(), torch.Generator().manual_seed(0))
    shown = torch.isfinite(roots.token_probs[0]).sum(dim=1)
    # Roots stand at the last token before each action: places 1, 2, 4, 5 and 8.
    assert shown.tolist() == [0, 2, 1, 0, 2, 1, 0, 0, 2, 0, 0, 0]
    value = imagined_root_returns(world, acting, rollout, states, 3, 1.0, torch.Generator().manual_seed(0))
    # s_0 = (2, 3): tokens 4 and 5, paid 1 each, and 10 (2 + 3 + 4 + 5) at the border.
    assert value.tolist() == [142.0]
    ids, mask = torch.zeros((1, 6, 2), dtype=torch.long), torch.zeros((1, 6, 2), dtype=torch.bool)
    ids[0, 0], mask[0, 0] = torch.tensor([EOS, 4]), True
    live = LiveTokens(ids, torch.zeros((1, 6, 2)), mask)
    features = imagined_features(world, acting, rollout, states, live, 3, 100)
    # After EOS nothing: 1 paid, 10 (5 + 1) for good. After 4 one more token: 5.
    assert features.readings[0].tolist() == [1, 1, 60, 0, 0, 0, 0, 60, 60, 1]
    assert features.readings[1, [0, 1, 2, 7, 8, 9]].tolist() == [1, 1, 90, 140, 140, 2]
    assert features.border_fraction == 1.0


class Echo:
    """Repeats what is said behind "=" and pays half for each of two turns."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._num_turns = 0
        return "abcd"[seed % 4] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._num_turns += 1
        return "=" + text, 0.5, self._num_turns == 2, False, {}


@pytest.mark.parametrize("use", ["baseline", "counterfactual"])
def test_the_share_of_cut_imaginations_is_logged(use: str, tiny_model: Callable[..., MTPModel]) -> None:
    """Turns of one token: two more are never the policy's. Where EOS ends the text there is no border."""
    env = TextGenVectorEnv(
        4,
        autoreset_mode="disabled",
        task=WorldTask(Echo, num_seeds=40),
        tokenizer=CharTokenizer("abcd="),
        max_prompt=2,
        max_new=8,
        max_turn=1,
        pool_size=8,
    )
    imagination = ImaginationConfig(use=use, horizon=2, num_rollouts=1, max_live=3)
    rollout = RolloutConfig(num_iterations=1, num_prompts=2, group_size=2)
    world = WorldModelConfig(num_updates=1, batch_size_episodes=2)
    trainer = ImaginationTrainer(tiny_model(), env, rollout, PPOConfig(), world, imagination, seed=0)
    assert trainer.step()[0]["imagination/turn_border_fraction"] == 1.0


def test_the_temperature_reaches_every_use(text_env: Callable[[int], TextGenVectorEnv], tiny_model: Any) -> None:
    """At a temperature near 0 all imaginations of a state are the greedy one, so more rollouts change nothing."""
    for use in ("baseline", "counterfactual"):
        rollout = RolloutConfig(num_iterations=1, num_prompts=2, group_size=2, temperature=1e-4)
        imagination = ImaginationConfig(use=use, horizon=2, num_rollouts=2)
        world = WorldModelConfig(backend="oracle", num_updates=0)
        trainer = ImaginationTrainer(tiny_model(), text_env(4), rollout, PPOConfig(), world, imagination, seed=0)
        assert "imagination/turn_border_fraction" not in trainer.step()[0]
        policy = trainer._estimator._acting.policy  # type: ignore[attr-defined]
        probs = policy(torch.tensor([[1.0, 1.01, 0.0]])).exp()
        assert probs[0].tolist() == pytest.approx([0.0, 1.0, 0.0])


def test_the_temperature_reaches_the_heads_that_learn(
    text_env: Callable[[int], TextGenVectorEnv], tiny_model: Any
) -> None:
    """Logits of fresh heads differ by some tenths, of which a temperature of .0001 makes thousands of nats."""
    rollout = RolloutConfig(num_iterations=1, num_prompts=2, group_size=2, temperature=1e-4)
    world = WorldModelConfig(num_updates=1, batch_size_episodes=4)
    imagination = ImaginationConfig(use="baseline", horizon=2, num_rollouts=2)
    trainer = ImaginationTrainer(tiny_model(), text_env(4), rollout, PPOConfig(), world, imagination, seed=0)
    assert trainer.step()[0]["world_model/depth_2/ce"] > 100
