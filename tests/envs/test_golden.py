"""One recorded episode of every registered id: the same prompts, replies and scores on every machine, in every release.

A trace holds three questions drawn with fixed generators, and two of them answered in a vector env: the first by the
oracle where there is one, worlds by random moves, all else by random tokens. How pools are drawn changes nothing.

Where a change of the environments is meant, write the traces again, read the difference, and list it in CHANGELOG.md
under *Numerics*::

    WRITE_GOLDEN=1 python -m pytest tests/envs/test_golden.py; git diff tests/envs/golden
"""

import json
import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from worldmtp.envs.catalogue import BUILTIN_TASKS, LAKES, TURN_ENV_ID
from worldmtp.envs.task import Example

GOLDEN = Path(__file__).with_name("golden")
REWRITE = "WRITE_GOLDEN=1 python -m pytest tests/envs/test_golden.py"
IDS = [f"worldmtp/{name}-v0" for name in (*BUILTIN_TASKS, "ReasoningGym")]
MOVES = {
    "GuessNumber": "0123456789",
    "GridWorld": "nesw",
    "Pig": "rrrh",
    **dict.fromkeys((*LAKES, "FrozenLakeRandom"), "ldru"),
    "KeyDoor": "nesw",
    "Switches": "abcd",
    **dict.fromkeys(("Taxi", "TaxiDry"), "snewpd"),
    "Blackjack": "hs",
}
"""Tokens of which a world makes something, in turns of one, or of two digits; now and then another is said."""
SAID = ["5", "zz", "7", "2", "9", "11", "3", "8", "13", "1"]
"""To a world of the turn-level id, which has a number in mind."""


def file_of(name):
    return GOLDEN / f"{name.replace('/', '.')}.json"


def as_example(drawn):
    return {"prompt": drawn.prompt, "answer": drawn.answer, "meta": dict(drawn.meta), "hidden": drawn.hidden}


def questions_of(env):
    drawn = [env.task.sample(np.random.default_rng(seed), "train") for seed in range(3)]
    return json.loads(json.dumps([as_example(example) for example in drawn], default=repr))


def actions_of(name, env, questions):
    """A column a step; rows that have ended ignore theirs."""
    rng, tokenizer = np.random.default_rng(0), env.tokenizer
    columns = rng.integers(tokenizer.eos_id + 1, env.single_action_space.n, size=(env.dataset.max_new, 2))
    moves = MOVES.get(name.split("/")[1].removesuffix("-v0"))
    if moves:
        chosen = rng.choice(tokenizer.encode(moves), size=columns.shape)
        columns = np.where(rng.random(columns.shape) < 0.9, chosen, columns)
        width = 3 if "GuessNumber" in name else 2
        columns[width - 1 :: width] = tokenizer.eos_id
    else:
        columns[rng.random(columns.shape) < 0.4] = tokenizer.eos_id
    if questions[0]["answer"] is not None:
        oracle = [*tokenizer.encode(questions[0]["answer"]), tokenizer.eos_id]
        columns[: len(oracle), 0] = oracle
    return columns.tolist()


def play(env, questions, columns):
    """Prompts, steps until both rows have ended, and what is said of them then."""
    examples = [Example(**question) for question in questions[:2]]
    obs, infos = env.reset(seed=0, options={"prompts": examples})
    ids = [tokens[:length].tolist() for tokens, length in zip(obs["tokens"], obs["length"][:, 0], strict=True)]
    played = {"prompts": infos["prompt_text"].tolist(), "prompt_ids": ids, "steps": [], "final": [{}, {}]}
    for column in columns:
        _, rewards, terminated, truncated, infos = env.step(np.array(column))
        step = {"actions": column, "rewards": rewards.tolist()}
        step |= {"terminated": terminated.tolist(), "truncated": truncated.tolist()}
        played["steps"].append(step | ({"replies": infos["reply"].tolist()} if "reply" in infos else {}))
        for row in np.flatnonzero(terminated | truncated).tolist():
            final = infos["final_info"]
            told = {key: final[key][row] for key in ("text", "score", "exact", "reason", "num_tokens")}
            played["final"][row] = {
                key: value.item() if isinstance(value, np.generic) else value for key, value in told.items()
            }
        if all(played["final"]):
            return played
    raise AssertionError("an episode did not end within its budget")


def as_text(trace):
    """JSON with one entry of a list a line, so that a difference shows the step."""
    lines = [
        f'"{key}": [\n  ' + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        if isinstance(value, list)
        else f'"{key}": {json.dumps(value)}'
        for key, value in trace.items()
    ]
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def recorded(name, trace_of):
    """The trace of the file and the one that is seen now; writes the file where that was asked for."""
    path = file_of(name)
    if os.environ.get("WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_text(trace_of(None)), encoding="utf-8")
        pytest.skip(f"{path.name} was written")
    golden = json.loads(path.read_text(encoding="utf-8"))
    return golden, json.loads(json.dumps(trace_of(golden)))


def assert_alike(seen, golden, path, tolerance):
    """Floats to a tolerance, everything else exactly."""
    if isinstance(golden, float) and isinstance(seen, float):
        assert seen == pytest.approx(golden, abs=tolerance), (
            f"{path}; if that is meant, write the traces again: {REWRITE}"
        )
    elif isinstance(golden, dict | list) and type(seen) is type(golden) and len(seen) == len(golden):
        assert isinstance(golden, list) or seen.keys() == golden.keys(), path
        for key in golden if isinstance(golden, dict) else range(len(golden)):
            assert_alike(seen[key], golden[key], f"{path}/{key}", tolerance)
    else:
        assert seen == golden, f"{path}; if that is meant, write the traces again: {REWRITE}"


@pytest.mark.parametrize("name", IDS)
def test_an_episode_is_the_recorded_one(name, kwargs_of, tmp_path, monkeypatch):
    kwargs = kwargs_of(name, pool_size=4)
    if name == "worldmtp/Corpus-v0":  # the standard library differs between releases of Python
        for number in range(20):
            (tmp_path / f"{number:02}.txt").write_text(" ".join(str(k * (number + 1) ** 2) for k in range(60)))
        monkeypatch.chdir(tmp_path)  # names of files stand in the questions
        kwargs["task_kwargs"] = {"files": "*.txt"}
    env = gymnasium.make_vec(name, 2, autoreset_mode="disabled", **kwargs)

    def trace_of(golden):
        questions = questions_of(env)
        chosen = golden["questions"] if golden else questions
        columns = [step["actions"] for step in golden["steps"]] if golden else actions_of(name, env, questions)
        return {"id": name, "questions": questions, **play(env, chosen, columns)}

    golden, seen = recorded(name, trace_of)
    # A reward model is a network in single precision, whose sums differ between machines.
    assert_alike(seen, golden, name, tolerance=1e-4 if "RewardModel" in name else 1e-12)


def test_a_conversation_in_texts_is_the_recorded_one():
    env = gymnasium.make(TURN_ENV_ID).unwrapped

    def trace_of(golden):
        text, _ = env.reset(options={"world_seed": 7})
        steps = []
        for said in [step["said"] for step in golden["steps"]] if golden else SAID:
            reply, reward, terminated, truncated, _ = env.step(said)
            steps.append(
                {"said": said, "reply": reply, "reward": reward, "terminated": terminated, "truncated": truncated}
            )
            if terminated or truncated:
                break
        return {"id": TURN_ENV_ID, "opening": text, "steps": steps}

    golden, seen = recorded(TURN_ENV_ID, trace_of)
    assert_alike(seen, golden, TURN_ENV_ID, tolerance=1e-12)


def test_every_id_has_a_trace_and_every_trace_an_id():
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(file_of(name).name for name in [*IDS, TURN_ENV_ID])
