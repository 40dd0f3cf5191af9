"""The imagined env over a world model that knows the echo task: exact, it equals the real env; else, by hand.

Ids: pad 0, EOS 1, a 2, b 3, = 4; prompts take up to 4 tokens, answers up to 4.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from worldmtp.dynamics import Prediction
from worldmtp.envs import Example, ImaginedVectorEnv

SHAPE = {"pad_id": 0, "eos_id": 1, "vocab_size": 5, "max_prompt": 4, "max_new": 4}


@dataclass(frozen=True)
class EchoState:
    prefixes: tuple

    @property
    def latent(self):
        return torch.zeros(len(self), 1)

    def __len__(self):
        return len(self.prefixes)

    def select(self, rows):
        return EchoState(tuple(self.prefixes[row] for row in rows.tolist()))

    def put(self, rows, other):
        source = torch.arange(len(self)).index_copy(0, rows, len(self) + torch.arange(len(other)))
        return EchoState.cat([self, other]).select(source)

    @classmethod
    def cat(cls, tables):
        return cls(sum((table.prefixes for table in tables), ()))


@dataclass
class EchoWorldModel:
    """The rules of the echo task, as a world model; ``surrender`` is a token after which it expects the end."""

    action_conditional: bool = True
    max_horizon: int | None = None
    models_replies: bool = False
    surrender: int | None = None
    num_steps: int = 0

    def encode(self, input_ids, attention_mask, root_rows=None, root_positions=None):
        assert attention_mask.sum(dim=1).tolist() == [position + 1 for position in root_positions.tolist()]
        pairs = zip(root_rows.tolist(), root_positions.tolist(), strict=True)
        return EchoState(tuple(tuple(input_ids[row, : position + 1].tolist()) for row, position in pairs))

    def step(self, state, actions):
        self.num_steps += len(state)
        grown = zip(state.prefixes, actions.tolist(), strict=True)
        return EchoState(tuple((*prefix, action) for prefix, action in grown))

    def predict(self, state, with_logits=True):
        rewards = [self.reward(prefix) for prefix in state.prefixes]
        lengths = torch.tensor([float(len(prefix)) for prefix in state.prefixes], requires_grad=True)
        goes_on = [float(prefix[-1] not in (1, self.surrender)) for prefix in state.prefixes]
        return Prediction(
            logits=lengths[:, None] * torch.ones(5) if with_logits else None,
            reward=torch.tensor(rewards),
            continuation=torch.tensor(goes_on),
            value=lengths / 10,
        )

    def reward(self, prefix):
        word, response = prefix[: prefix.index(4)], prefix[prefix.index(4) + 1 :]
        if not response or (response[-1] != 1 and len(response) < 4):
            return 0.0
        text = tuple(token for token in response if token > 1)
        return 1.0 if text == word else 0.5 * (len(text) == len(word))


def test_an_exact_world_model_is_the_real_env(make_vector, rng):
    real = make_vector(16, "disabled")
    for seed in range(5):
        real_obs, real_infos = real.reset(seed=seed)
        prompts = [real.tokenizer.encode(text) for text in real_infos["prompt_text"]]
        imagined = ImaginedVectorEnv(EchoWorldModel(), prompts, **SHAPE)
        assert imagined.observation_space == real.observation_space
        assert imagined.action_space == real.action_space
        obs, _ = imagined.reset(seed=seed)
        assert all((obs[key] == real_obs[key]).all() for key in obs)
        paid = np.zeros(16)
        for _ in range(5):
            actions = np.where(rng.random(16) < 0.3, 1, rng.integers(2, 4, size=16))
            real_step, step = real.step(actions), imagined.step(actions)
            assert all((step[0][key] == real_step[0][key]).all() for key in obs)
            assert all((step[index] == real_step[index]).all() for index in (1, 2, 3))
            assert ("final_info" in step[4]) == ("final_info" in real_step[4])
            if "final_info" in step[4]:
                for key in ("score", "_score", "num_tokens"):
                    assert (step[4]["final_info"][key] == real_step[4]["final_info"][key]).all()
            paid += step[1]
        assert (paid > 0).any()


def test_an_imagined_episode_by_hand():
    model = EchoWorldModel(surrender=3)
    envs = ImaginedVectorEnv(model, [[2, 4], [3, 3, 4], [2, 2, 4]], **SHAPE, horizon=2)
    obs, infos = envs.reset()
    assert obs["tokens"].tolist() == [[2, 4, 0, 0, 0, 0, 0, 0], [3, 3, 4, 0, 0, 0, 0, 0], [2, 2, 4, 0, 0, 0, 0, 0]]
    assert infos["policy_logits"].tolist() == [[2.0] * 5, [3.0] * 5, [3.0] * 5]
    assert infos["policy_logits"].dtype == infos["values"].dtype == np.float32
    # row 0 says "a", row 1 "b" (the model gives up: terminated), row 2 "a"
    obs, rewards, terminated, truncated, infos = envs.step(np.array([2, 3, 2]))
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([0, 0, 0], [False, True, False], [False] * 3)
    assert infos["final_info"]["reason"][1] == "continuation"
    assert infos["continuations"].tolist() == [1, 0, 1]
    assert infos["_policy_logits"].tolist() == [True, False, True]
    assert infos["policy_logits"].tolist() == [[3.0] * 5, [0.0] * 5, [4.0] * 5]
    assert infos["_values"].tolist() == [True] * 3  # of the ended row too: what it would be worth from there
    # row 0 ends by EOS and is right; row 1 ignores its action; row 2 is cut at the horizon of 2
    obs, rewards, terminated, truncated, infos = envs.step(np.array([1, -5, 2]))
    assert rewards.tolist() == [1, 0, 0]
    assert terminated.tolist() == [True, False, False]
    assert truncated.tolist() == [False, False, True]
    assert infos["final_info"]["reason"].tolist() == ["eos", None, "horizon"]
    assert infos["final_info"]["score"].tolist() == [1, 0, 0]
    assert infos["final_info"]["num_tokens"].tolist() == [2, 0, 2]
    assert infos["values"][2] == np.float32(0.5)  # five tokens over ten, to bootstrap from
    assert obs["tokens"].tolist() == [[2, 4, 2, 1, 0, 0, 0, 0], [3, 3, 4, 3, 0, 0, 0, 0], [2, 2, 4, 2, 2, 0, 0, 0]]
    before = model.num_steps
    obs, rewards, terminated, truncated, infos = envs.step(np.array([2, 2, 2]))
    assert [array.any() for array in (rewards, terminated, truncated)] == [False] * 3
    assert infos == {}
    assert model.num_steps == before == 5  # ended rows are not imagined


def test_in_a_conversation_the_turn_ends_and_is_bootstrapped():
    """EOS (row 0) and a turn of two tokens (row 1) cut a row, as the world speaks next; row 2 has room for more."""
    prefixes = [[2, 4], [3, 3, 4], [2, 2, 4]]
    envs = ImaginedVectorEnv(EchoWorldModel(), prefixes, **SHAPE, turn_room=[3, 2, 3])
    envs.reset()
    _, _, terminated, truncated, infos = envs.step(np.array([1, 3, 2]))
    assert (terminated.tolist(), truncated.tolist()) == ([False] * 3, [True, False, False])
    assert infos["final_info"]["reason"][0] == "turn"
    assert infos["values"][0] == np.float32(0.3)  # three tokens over ten
    _, _, terminated, truncated, infos = envs.step(np.array([0, 3, 2]))
    assert (terminated.tolist(), truncated.tolist()) == ([False] * 3, [False, True, False])
    assert infos["final_info"]["reason"][1] == "turn"
    with pytest.raises(ValueError, match="new prefixes of a conversation need their turn_room"):
        envs.reset(options={"prefix_ids": prefixes})
    envs.reset(options={"prefix_ids": prefixes, "turn_room": [1, 1, 1]})
    assert envs.step(np.array([2, 2, 2]))[3].tolist() == [True] * 3
    with pytest.raises(ValueError, match=r"turn_room=\[1, 0, 1\] must be at least 1 for each of 3 rows"):
        ImaginedVectorEnv(EchoWorldModel(), prefixes, **SHAPE, turn_room=[1, 0, 1])


def test_without_a_threshold_only_eos_ends():
    envs = ImaginedVectorEnv(EchoWorldModel(surrender=3), [[2, 4]], **SHAPE, continuation_threshold=None)
    envs.reset()
    assert not envs.step(np.array([3]))[2].any()
    assert envs.step(np.array([1]))[2].all()


def test_a_root_may_hold_the_beginning_of_a_response():
    envs = ImaginedVectorEnv(EchoWorldModel(), [[2, 4, 3, 3], [2, 3, 4]], [2, 3], **SHAPE)
    obs, _ = envs.reset()
    assert obs["length"].tolist() == [[4], [3]]
    assert obs["prompt_length"].tolist() == [[2], [3]]
    envs.step(np.array([3, 3]))
    _, _, _, truncated, infos = envs.step(np.array([3, 3]))
    assert truncated.tolist() == [True, False]  # two of four tokens were there already
    assert infos["final_info"]["reason"][0] == "budget"
    assert infos["final_info"]["num_tokens"][0] == 2


def test_new_prefixes_at_reset():
    envs = ImaginedVectorEnv(EchoWorldModel(), [[2, 4], [3, 4]], **SHAPE)
    envs.reset()
    envs.step(np.array([1, 1]))
    obs, _ = envs.reset(options={"prefix_ids": [[2, 2, 4], [3, 4, 2]], "prompt_length": [3, 2]})
    assert obs["length"].tolist() == [[3], [3]]
    assert not envs.step(np.array([2, 2]))[2].any()
    with pytest.raises(ValueError, match="1 prefixes for 2 rows"):
        envs.reset(options={"prefix_ids": [[2, 4]]})
    with pytest.raises(ValueError, match=r"\['prompts'\] are unknown"):
        envs.reset(options={"prompts": [[2, 4]]})


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        ({"action_conditional": False}, {}, TypeError, "is not action-conditional"),
        ({"max_horizon": 3}, {"horizon": 4}, ValueError, "horizon=4 must be at least 1, and at most 3"),
        ({}, {"horizon": 0}, ValueError, "horizon=0 must be at least 1"),
        ({}, {"continuation_threshold": 1.5}, ValueError, "must be a probability"),
        ({}, {"prefix_ids": [[2, 3, 2, 3, 4]]}, ValueError, r"prompt lengths \[5\] must be at least 1"),
        ({}, {"prefix_ids": [[4], []]}, ValueError, r"prompt lengths \[1, 0\]"),
        ({}, {"prefix_ids": []}, ValueError, "expected prefixes"),
        ({}, {"prefix_ids": [[2, 4, 2, 2, 2, 2]], "prompt_length": [2]}, ValueError, "it has ended already"),
    ],
)
def test_what_cannot_be_imagined_is_refused(model, arguments, error, message):
    arguments = {"prefix_ids": [[2, 4]]} | arguments
    with pytest.raises(error, match=message):
        ImaginedVectorEnv(replace(EchoWorldModel(), **model), **arguments, **SHAPE)


def test_the_horizon_defaults_to_what_the_model_can():
    assert ImaginedVectorEnv(EchoWorldModel(max_horizon=3), [[2, 4]], **SHAPE).horizon == 3
    assert ImaginedVectorEnv(EchoWorldModel(max_horizon=9), [[2, 4]], **SHAPE).horizon == 4


def test_calls_in_the_wrong_order_or_shape():
    envs = ImaginedVectorEnv(EchoWorldModel(), [[2, 4], [3, 4]], **SHAPE)
    with pytest.raises(ResetNeeded):
        envs.step(np.array([2, 2]))
    envs.reset()
    with pytest.raises(ValueError, match="actions must be 2 integers"):
        envs.step(np.array([2]))
    with pytest.raises(ValueError, match=r"outside the vocabulary 0\.\.4"):
        envs.step(np.array([2, 5]))


def test_one_loop_serves_both(make_vector):
    """The loop knows no more of the env than its spaces and its ends."""

    def play(envs):
        obs, _ = envs.reset(seed=0)
        returns, done = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=bool)
        while not done.all():
            word = obs["tokens"][np.arange(envs.num_envs), obs["length"][:, 0] - obs["prompt_length"][:, 0]]
            actions = np.where(word == 4, 1, word)  # copy the prompt until its "="
            obs, rewards, terminated, truncated, _ = envs.step(actions)
            returns += rewards
            done |= terminated | truncated
        return returns.tolist()

    examples = [Example(f"{word}=", word) for word in ("a", "ba", "bbb", "ab")]
    real = make_vector(4, "disabled")
    real.dataset._pools["train"] = real.dataset.encode(examples)
    imagined = ImaginedVectorEnv(EchoWorldModel(), [real.tokenizer.encode(e.prompt) for e in examples], **SHAPE)
    assert play(real) == play(imagined) == [1.0] * 4
