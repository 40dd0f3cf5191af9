"""Laws of the vector env, tried by random sequences of resets, steps and snapshots beside a model in plain lists.

Whatever is called in whatever order: texts, rewards and ends are those of the model; rewards add up to the score;
ended rows stand still; a group has one question and a number of its own; a refused call changes nothing; a snapshot
goes on exactly; the same seed and the same tokens give the same episodes; a world that raised is not gone on with.
"""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

SETTINGS = settings(
    max_examples=20,
    stateful_step_count=20,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # with Phase.shrink a failure takes minutes to become a few calls shorter
    suppress_health_check=list(HealthCheck),  # they are about speed
)
SEEDS = st.none() | st.integers(0, 3)
ROWS = {"min_size": 4, "max_size": 4}


class Laws(RuleBasedStateMachine):
    """Calls of one env, each checked against the model; at the end all are played again in a fresh env."""

    game = None

    def __init__(self):
        super().__init__()
        self.env, self.questions, self.played = self.game.make(), self.game.questions(), []
        self.rows, self.split, self.group_size, self.num_groups = [None] * self.game.num_rows, "train", 1, 0

    @initialize(seed=st.integers(0, 3))
    def begin(self, seed):
        self.reset(seed, None, None, None, "drawn", [0])

    @rule(
        seed=SEEDS,
        mask=st.none() | st.lists(st.booleans(), **ROWS).filter(any),
        group_size=st.sampled_from([None, None, 1, 2, 4]),
        split=st.sampled_from([None, None, "train", "heldout"]),
        source=st.sampled_from(["drawn", "drawn", "indices", "prompts"]),
        chosen=st.lists(st.integers(0, 13), **ROWS),
    )
    def reset(self, seed, mask, group_size, split, source, chosen):
        size = group_size or self.group_size
        rows = [row for row in range(self.game.num_rows) if mask is None or mask[row]]
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        chosen = chosen[: len(groups)]
        named = [list(self.questions.values())[index] for index in chosen] if source == "prompts" else None
        options = {"split": split, "group_size": group_size, "reset_mask": None if mask is None else np.array(mask)}
        options |= {"indices": chosen} if source == "indices" else {"prompts": named}
        if any(group != list(range(group[0] // size * size, group[0] // size * size + size)) for group in groups):
            self.refuses(options, "reset_mask must cover whole groups")
            return
        obs, infos = self.env.reset(seed=seed, options=options)
        self.played.append(("reset", (seed, options), plain([obs, infos])))
        self.split, self.group_size = split or self.split, size
        if seed is not None and len(rows) == self.game.num_rows:
            self.num_groups = 0
        for place, group in enumerate(groups):
            questions = [self.questions[infos["example_key"][row]] for row in group]
            if named:
                assert questions == [named[place]] * size
            for row, question in zip(group, questions, strict=True):
                assert question == questions[0]
                assert infos["prompt_text"][row] == question.prompt
                assert infos["group"][row] == self.num_groups
                self.rows[row] = self.game.begin(question, self.num_groups)
            if not named:  # the split is the hash of the question modulo 1000, of which 500 are held out
                assert (int(infos["example_key"][group[0]], 16) % 1000 < 500) == (self.split == "heldout")
            self.num_groups += 1
        assert infos["_group"].tolist() == [row in rows for row in range(self.game.num_rows)]
        self.sees(obs)

    @rule(split=st.sampled_from(["train", "heldout"]))
    def reset_to_an_index_that_is_not_there(self, split):
        size = 2 if self.group_size == 1 else 1
        indices = [16] * (self.game.num_rows // size)
        self.refuses({"split": split, "group_size": size, "indices": indices}, "indices must be")

    @rule(columns=st.lists(st.lists(st.sampled_from([1, 1, 2, 3, 3]), **ROWS), min_size=1, max_size=4))
    def step(self, columns):
        for column in columns:
            self.step_once([-7 if row.done else action for row, action in zip(self.rows, column, strict=True)])

    def step_once(self, actions):
        saved, before = self.snapshot(), [row.copy() for row in self.rows]
        expected = [self.game.step(row, action) for row, action in zip(self.rows, actions, strict=True)]
        if self.game.on_error == "raise" and any(outcome.raises for outcome in expected):
            with pytest.raises(RuntimeError, match="fallen apart"):
                self.env.step(np.array(actions))
            self.rows = before
            self.sees(self.env.load_state(saved))
            return
        obs, rewards, terminated, truncated, infos = self.env.step(np.array(actions))
        self.played.append(("step", (np.array(actions),), plain([obs, rewards, terminated, truncated, infos])))
        assert rewards.tolist() == [outcome.reward for outcome in expected]
        assert terminated.tolist() == [outcome.terminated for outcome in expected]
        assert truncated.tolist() == [outcome.truncated for outcome in expected]
        nowhere = np.zeros(self.game.num_rows, dtype=bool)
        assert infos.get("_reply", nowhere).tolist() == [outcome.reply is not None for outcome in expected]
        ended = [outcome.terminated or outcome.truncated for outcome in expected]
        assert infos.get("_final_info", nowhere).tolist() == ended
        for index, outcome in enumerate(expected):
            if outcome.reply is not None:
                assert (infos["reply"][index], infos["num_written"][index]) == outcome.reply
            if ended[index]:
                self.check_end(index, outcome, infos["final_info"])
        self.sees(obs)

    def check_end(self, index, outcome, final):
        row = self.rows[index]
        assert final["score"][index] == row.paid  # the sum of the model's rewards, which are the env's
        assert (final["text"][index], final["reason"][index]) == (row.text, outcome.reason)
        assert final["num_tokens"][index] == sum(row.acted)
        assert (final["group"][index], final["prompt_text"][index]) == (row.group, row.question.prompt)
        assert self.questions[final["example_key"][index]] == row.question
        if self.game.kind == "talk":
            acted = [False] * len(row.question.prompt) + row.acted
            width = self.game.max_prompt + self.game.max_new
            assert final["acted"][index].tolist() == acted + [False] * (width - len(acted))
            assert final["components"]["num_turns"][index] == len(row.said)

    @rule()
    def go_on_from_a_snapshot_in_another_env(self):
        saved = self.snapshot()
        self.env = self.game.make()
        obs = self.env.load_state(saved)
        assert self.snapshot() == saved
        self.sees(obs)

    def teardown(self):
        """Without the snapshots, and the calls that were refused or raised, the same happens."""
        fresh = self.game.make()
        for verb, arguments, seen in self.played:
            call = fresh.step if verb == "step" else lambda seed, options: fresh.reset(seed=seed, options=options)
            assert plain(list(call(*arguments))) == seen

    def snapshot(self):
        saved = json.loads(json.dumps(self.env.state()))
        saved["scorer"]["seconds"] = 0.0
        return saved

    def refuses(self, options, message):
        saved = self.snapshot()
        with pytest.raises(ValueError, match=message):
            self.env.reset(options=options)
        assert self.snapshot() == saved

    def sees(self, obs):
        width = self.game.max_prompt + self.game.max_new
        assert obs["tokens"].tolist() == [row.tokens + [0] * (width - len(row.tokens)) for row in self.rows]
        assert obs["length"].tolist() == [[len(row.tokens)] for row in self.rows]
        assert obs["prompt_length"].tolist() == [[len(row.question.prompt)] for row in self.rows]
        for values in obs.values():
            values[:] = 99  # what an agent does with an observation is nothing to the env


def plain(value):
    """Arrays as lists, all the way down, to be compared."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.mark.filterwarnings("ignore:scoring 'bb' for the prompt:RuntimeWarning")
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "plain-three-steps",
        "dense",
        "dense-three-steps",
        "conversation",
        "conversation-five-steps",
        "conversation-in-short-rows",
        "conversation-that-raises",
    ],
)
def test_whatever_is_called(name, games):
    run_state_machine_as_test(type("Machine", (Laws,), {"game": games[name]}), settings=SETTINGS)
