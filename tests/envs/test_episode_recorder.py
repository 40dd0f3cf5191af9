"""Episodes as lines of a file, by hand, and what a kill leaves of them. Ids: pad 0, EOS 1, a 2, b 3, = 4."""

import json
import signal
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pandas
import pytest
from gymnasium.utils.env_checker import check_env

from worldmtp.envs import VectorEpisodeRecorder, read_episodes, split_of
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.envs.wrappers.episode_recorder import EpisodeLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "episodes.jsonl"


def recorded(path):
    """Arguments of a single env."""
    return {"text_wrappers": [{"name": "episode_recorder", "path": str(path)}]}


def test_a_line_by_hand(make_single, words, path):
    env = make_single(**recorded(path))
    env.reset(seed=5, options={"prompts": words("ab")})
    for action in (2, 0, 1):  # "a", padding, EOS: what was sampled; the padding is no text
        env.step(action)
    key = words("ab")[0].key
    assert read_episodes(path) == [
        {
            "env_id": None,
            "seed": 5,
            "group": 0,
            "row": 0,
            "split": split_of(key, 0.5),
            "example_key": key,
            "prompt": "ab=",
            "prompt_ids": [2, 3, 4],
            "ids": [2, 0, 1],
            "text": "a\ufffd",
            "score": 0.5,
            "exact": False,
            "components": {"length": 2.0},
            "reason": "ok",
            "num_tokens": 3,
            "terminated": True,
            "truncated": False,
        }
    ]


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_rows_end_in_every_mode(make_vector, words, path, mode):
    envs = make_vector(2, mode, lambda rows: VectorEpisodeRecorder(rows, path))
    envs.reset(seed=7, options={"prompts": words("a", "bb")})
    for column in ([2, 3], [1, 3], [2, 3], [2, 3]):
        envs.step(np.array(column))
    lines = read_episodes(path)
    first, second = lines[0], next(line for line in lines if line["row"] == 1)
    assert (first["row"], first["prompt"], first["ids"], first["text"], first["score"]) == (0, "a=", [2, 1], "a", 1.0)
    assert (second["prompt"], second["ids"], second["reason"]) == ("bb=", [3, 3, 3, 3], "no_eos")
    assert (second["terminated"], second["truncated"], second["num_tokens"]) == (False, True, 4)
    assert [line["seed"] for line in lines] == [7] * len(lines)
    assert [line["group"] for line in lines[:2]] == [0, 1]


def test_single_and_vector_write_the_same_lines(make_single, make_vector, words, tmp_path):
    env, envs = (
        make_single(**recorded(tmp_path / "one")),
        VectorEpisodeRecorder(make_vector(1, "disabled"), tmp_path / "rows"),
    )
    for number, word in enumerate(["a", "ab", "bbb"]):
        seed = 3 if number == 0 else None
        env.reset(seed=seed, options={"prompts": words(word)})
        envs.reset(seed=seed, options={"prompts": words(word)})
        for action in (2, 3, 1):
            env.step(action)
            envs.step(np.array([action]))
    assert read_episodes(tmp_path / "one") == read_episodes(tmp_path / "rows")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "rows").read_bytes()


def test_pandas_reads_it(make_vector, path):
    envs = make_vector(4, wrap=lambda rows: VectorEpisodeRecorder(rows, path))
    envs.reset(seed=0)
    for _ in range(9):
        envs.step(np.array([2, 2, 3, 1]))
    frame = pandas.read_json(path, lines=True)
    assert len(frame) == len(read_episodes(path)) == 3 * 2 + 9
    assert frame["ids"].map(len).tolist() == frame["num_tokens"].tolist()


def test_ids_of_registered_envs_carry_the_id(path):
    recorder = {"name": "episode_recorder", "path": str(path)}
    envs = gymnasium.make_vec("worldmtp/Copy-v0", num_envs=2, pool_size=8, text_wrappers=[recorder])
    envs.reset(seed=0)
    envs.step(np.array([1, 3]))
    (line,) = read_episodes(path)
    assert (line["env_id"], line["ids"], line["split"]) == ("worldmtp/Copy-v0", [1], "train")


def test_a_second_run_appends(make_single, words, path):
    for word in ("a", "b"):
        env = make_single(**recorded(path))
        env.reset(options={"prompts": words(word)})
        env.step(1)
    assert [line["prompt"] for line in read_episodes(path)] == ["a=", "b="]


def test_a_cut_off_last_line_is_left_out_and_then_removed(path):
    log = EpisodeLog(path)
    log.write({"episode": 0})
    with path.open("a") as file:
        file.write('{"episode": 1, "ids": [1, 2')
    assert read_episodes(path) == [{"episode": 0}]
    with pytest.warns(RuntimeWarning, match="was cut off after 27 bytes and has been removed"):
        log = EpisodeLog(path)
    log.write({"episode": 2})
    assert read_episodes(path) == [{"episode": 0}, {"episode": 2}]
    assert path.read_text() == '{"episode": 0}\n{"episode": 2}\n'


def test_a_file_of_something_else_is_an_error(path):
    EpisodeLog(path)
    path.write_text('{"episode": 0}\nnot json\n{"episode": 1}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*episodes\.jsonl is no JSON"):
        read_episodes(path)


def test_numbers_and_texts_that_json_has_no_word_for(path):
    log = EpisodeLog(path)
    log.write({"text": "ü\u2028\n\ud800", "components": {"nan": float("nan"), "inf": float("-inf"), "half": 0.5}})
    assert path.read_bytes().count(b"\n") == 1
    (line,) = read_episodes(path)
    assert line == {"text": "ü\u2028\n\ud800", "components": {"nan": None, "inf": None, "half": 0.5}}


def test_a_kill_loses_no_episode_that_has_ended(path):
    code = (
        "import os, signal, sys, numpy, worldmtp.envs\n"
        "rows = worldmtp.envs.make_text_vec('worldmtp/Copy-v0', 3, pool_size=8)\n"
        "envs = worldmtp.envs.Autoreset(worldmtp.envs.VectorEpisodeRecorder(rows, sys.argv[1]), 'same_step')\n"
        "envs.reset(seed=0)\n"
        "for _ in range(5): envs.step(numpy.ones(3, dtype=int))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [line["ids"] for line in read_episodes(path)] == [[1]] * 15


class Mirror:
    """Opens with "=", answers each of two turns with "=" and the turn."""

    def reset(self, seed):
        self._turns = 0
        return "=", {}

    def step(self, text):
        self._turns += 1
        return f"={text}", 0.5, self._turns == 2, False, {}


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_conversations_say_who_wrote(make_single, make_vector, tmp_path, mode):
    changes = {"task": WorldTask(Mirror), "max_prompt": 1, "max_new": 12}
    env = make_single(**recorded(tmp_path / "one"), **changes)
    envs = make_vector(1, mode, lambda rows: VectorEpisodeRecorder(rows, tmp_path / "rows"), **changes)
    env.reset(seed=0)
    envs.reset(seed=0)
    for action in (2, 1, 3, 3, 1):
        env.step(action)
        envs.step(np.array([action]))
    (one,), (row,) = read_episodes(tmp_path / "one"), read_episodes(tmp_path / "rows")
    assert row == one
    # a EOS | = a | b b EOS | = b b
    assert row["ids"] == [2, 1, 4, 2, 3, 3, 1, 4, 3, 3]
    assert row["acted"] == [True, True, False, False, True, True, True, False, False, False]
    assert (row["score"], row["num_tokens"], row["prompt_ids"]) == (1.0, 5, [4])


def test_single_env_passes_gymnasiums_check(make_single, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make_single(**recorded(path)), skip_render_check=True)


def test_snapshot_goes_through(make_vector, words, path):
    envs = VectorEpisodeRecorder(make_vector(1, "disabled"), path)
    envs.reset(seed=4, options={"prompts": words("a")})
    state = json.loads(json.dumps(envs.state()))
    again = VectorEpisodeRecorder(make_vector(1, "disabled"), path)
    again.load_state(state)
    again.step(np.array([1]))
    (line,) = read_episodes(path)
    assert (line["seed"], line["prompt"]) == (4, "a=")
