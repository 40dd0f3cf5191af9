"""Tasks whose episodes can be worked by hand, what every id needs, and the vector env held against single envs."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from worldmtp.envs import CharTokenizer, Example, Score, TextGenEnv, TextGenVectorEnv
from worldmtp.envs.wrappers.autoreset import with_autoreset


class EchoTask:
    """Repeat a word of one to three letters; half of the credit for as many letters as the word has."""

    probe_bound = 0.5

    def __init__(self, max_length: int = 3) -> None:
        self.max_length = max_length

    def sample(self, rng, split):
        word = "".join("ab"[index] for index in rng.integers(2, size=rng.integers(1, self.max_length + 1)))
        return Example(prompt=word + "=", answer=word)

    def score(self, example, text, ids):
        word = example.prompt[:-1]
        exact = text == word
        return Score(1.0 if exact else 0.5 * (len(text) == len(word)), {"length": float(len(text))}, exact=exact)


@pytest.fixture
def echo_problem():
    """Arguments of an environment: 14 words, about half of them held out; prompts and answers of up to 4 tokens."""
    return {
        "task": EchoTask(),
        "tokenizer": CharTokenizer("ab="),
        "max_prompt": 4,
        "max_new": 4,
        "heldout_fraction": 0.5,
        "pool_size": 32,
    }


@pytest.fixture
def make_vector(echo_problem):
    """Rows, in what ``wrap`` puts around them, in an autoreset mode."""

    def make(num_envs, autoreset_mode="same_step", wrap=lambda env: env, group_size=1, render_mode=None, **changes):
        rows = TextGenVectorEnv(num_envs, group_size=group_size, render_mode=render_mode, **(echo_problem | changes))
        return with_autoreset(wrap(rows), autoreset_mode)

    return make


@pytest.fixture
def make_single(echo_problem):
    def make(**changes):
        return TextGenEnv(**(echo_problem | changes))

    return make


@pytest.fixture
def words():
    """Examples by word."""
    return lambda *names: [Example(prompt=name + "=", answer=name) for name in names]


@pytest.fixture
def registered_ids():
    import worldmtp.envs  # noqa: F401 - registers

    return sorted(name for name in gymnasium.registry if name.startswith("worldmtp/"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def importable(monkeypatch):
    """A scoring process finds the classes of a test's module by its name, wherever pytest was started."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with a random classifier of the given labels, and its tokenizer of single letters."""

    def make(labels, problem_type=None, **changes):
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

        path = tmp_path / f"judge-{len(labels)}-{problem_type}-{len(changes)}"
        vocab = {token: index for index, token in enumerate(["[PAD]", "[UNK]", *"abc="])}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | changes
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
        config = BertConfig(
            vocab_size=len(vocab),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=512,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type=problem_type,
            initializer_range=1.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            BertForSequenceClassification(config).save_pretrained(path)
        return str(path)

    return make


@pytest.fixture
def kwargs_of(tmp_path, checkpoint):
    """Small pools, and for the ids that are nothing without a user what a user would say."""

    def kwargs(name, pool_size=32):
        small = {"pool_size": pool_size}
        if name == "worldmtp/RewardModel-v0":
            return small | {"task_kwargs": {"checkpoint": checkpoint(["good"]), "prompts": "Copy"}, "max_new": 12}
        if name != "worldmtp/Data-v0":
            return small
        path = tmp_path / "sums.jsonl"
        rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(12) for b in range(12)]
        path.write_text("\n".join(map(json.dumps, rows)))
        return small | {"task_kwargs": {"path": str(path)}, "max_prompt": 8, "max_new": 8}

    return kwargs


@pytest.fixture
def assert_same():
    return _assert_same


def _assert_same(seen, expected):
    assert seen.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            _assert_same(seen[key], value)
            continue
        assert seen[key].dtype == value.dtype, key
        for one, other in zip(seen[key], value, strict=True):
            if isinstance(other, dict):
                assert all((one[name] == other[name]).all() for name in other)
            else:
                assert np.array_equal(one, other), key


@pytest.fixture
def assert_parity():
    """Rows and single envs play the same prompts and tokens; infos are compared through gymnasium's own batching."""
    return lambda envs, singles, rng, num_steps: _Parity(envs, singles).play(rng, num_steps)


class _Parity:
    def __init__(self, envs, singles):
        self.envs, self.singles = envs, singles
        self.mode = envs.metadata["autoreset_mode"]
        self.batching = VectorEnv()
        self.batching.num_envs = envs.num_envs
        self.seen = [None] * envs.num_envs

    def play(self, rng, num_steps):
        envs, rows, eos_id = self.envs, range(self.envs.num_envs), self.envs.tokenizer.eos_id
        obs, infos = envs.reset(seed=2)
        _assert_same(infos, self.reset(rows, infos))
        waiting = []
        for _ in range(num_steps):
            assert all((obs[key][row] == self.seen[row][key]).all() for row in rows for key in obs)
            if self.mode is AutoresetMode.DISABLED and waiting:
                obs, infos = envs.reset(options={"reset_mask": np.isin(rows, waiting)})
                _assert_same(infos, self.reset(waiting, infos))
                waiting = []
            actions = rng.integers(eos_id + 1, envs.single_action_space.n, size=envs.num_envs)
            actions[rng.random(envs.num_envs) < 0.3] = eos_id
            obs, rewards, terminated, truncated, infos = envs.step(actions)
            expected, ended = self.step([row for row in rows if row not in waiting], actions, infos)
            for row in rows:
                step = self.steps.get(row, [0.0, False, False])
                assert [rewards[row], terminated[row], truncated[row]] == step, row
            begun = {AutoresetMode.SAME_STEP: ended, AutoresetMode.NEXT_STEP: waiting}.get(self.mode, [])
            expected |= self.reset(begun, infos) if begun else {}
            _assert_same(infos, expected)
            waiting = [] if self.mode is AutoresetMode.SAME_STEP else ended

    def reset(self, rows, infos):
        batched = {}
        for row in rows:
            self.seen[row], info = self.singles[row].reset(options={"prompts": [self.envs.example_of(row)]})
            self.batching._add_info(batched, info | {"group": int(infos["group"][row])}, row)
        return batched

    def step(self, rows, actions, infos):
        expected, ended, self.steps = {}, [], {}
        for row in rows:
            self.seen[row], *self.steps[row], info = self.singles[row].step(actions[row])
            reply = {key: info[key] for key in ("reply", "num_written", "reply_info") if key in info}
            if any(self.steps[row][1:]):
                ended.append(row)
                info["group"] = int(infos["final_info"]["group"][row])
                extra = {"final_obs": self.seen[row]} if self.mode is AutoresetMode.SAME_STEP else {}
                self.batching._add_info(expected, extra | {"final_info": info}, row)
                if not infos.get("_reply", np.zeros(len(actions)))[row]:
                    assert reply in ({}, {"reply": "", "num_written": 0, "reply_info": {}})
                    reply = {}
            self.batching._add_info(expected, reply, row)
        return expected, ended


REWARDS = """
from worldmtp.envs import Score

NUMBER = 3


def length(example, text):
    return min(len(text), len(example.answer)) / len(example.answer)


def by_level(example, text):
    return Score(0.5, {"hard": float(example.meta["level"] == "hard")}, reason="judged")
"""


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_of_test_data.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_rewards_of_test_data"


@pytest.fixture
def unregistered():
    """Registrations of a test are undone."""
    from worldmtp.envs import registry

    factories, specs = dict(registry._factories), dict(gymnasium.registry)
    yield
    registry._factories.clear()
    registry._factories.update(factories)
    gymnasium.registry.clear()
    gymnasium.registry.update(specs)
