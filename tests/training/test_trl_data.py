"""What a trainer of TRL's is given in a run, and the tags of what it reports."""

import numpy as np
import pytest
import torch

from worldmtp import MTPConfig, MTPModel
from worldmtp.envs import Example, make_text_vec
from worldmtp.training import PostTrainingConfig, PostTrainingHeadsConfig
from worldmtp.training.trl_data import (
    ScoredAnswer,
    keep_answers,
    kept_answers,
    labelled_answers,
    pool_of,
    preference_pairs,
    sample_answers,
    texts,
)
from worldmtp.training.trl_log import tagged


def test_the_best_and_the_worst_answer_make_a_pair():
    answers = [
        *(ScoredAnswer("1+1=", text, score) for text, score in [("3", 0.0), ("2", 1.0), ("4", 0.5), ("5", 0.0)]),
        *(ScoredAnswer("2+2=", text, 0.0) for text in ("1", "3")),
    ]
    assert preference_pairs(answers) == [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}]
    assert [row["label"] for row in labelled_answers(answers)] == [False, True, True, False, False, False]
    assert labelled_answers(answers)[1] == {"prompt": "1+1=", "completion": "2", "label": True}


def test_answers_of_one_score_have_nothing_to_prefer():
    alike = [ScoredAnswer("1+1=", "3", 0.0), ScoredAnswer("1+1=", "4", 0.0)]
    with pytest.raises(ValueError, match=r"no prompt has answers of different scores: 2 finished answers .* \[0\.0\]"):
        preference_pairs(alike)
    with pytest.raises(ValueError, match="all answers have the same score"):
        labelled_answers(alike)
    with pytest.raises(ValueError, match="0 finished answers"):
        labelled_answers([])


def test_one_answer_or_one_text_makes_no_pair():
    lucky = [ScoredAnswer("1+1=", "3", 0.0), ScoredAnswer("1+1=", "3", 1.0), ScoredAnswer("2+2=", "4", 1.0)]
    with pytest.raises(ValueError, match="no prompt has answers of different scores"):
        preference_pairs(lucky)


def test_answers_come_back_from_their_file(tmp_path):
    answers = [ScoredAnswer("1+1=", "2", 1.0), ScoredAnswer("a\n", "", -0.5)]
    keep_answers(tmp_path / "post_training" / "answers.jsonl", answers)
    assert kept_answers(tmp_path / "post_training" / "answers.jsonl") == answers


def test_numbers_have_the_agents_tags_or_trls_names():
    logs = {
        "loss": 1, "reward": 0.5, "kl": 0.1, "env/exact": 0.25, "mtp/loss_depth_2": 2.0, "rewards/env/mean": 0.5,
        "num_tokens": 9, "step_time": 0.1, "a_text": "x", "a_flag": True,
    }  # fmt: skip
    assert tagged(logs) == {
        "trl/loss": 1.0,
        "rollout/return_mean": 0.5,
        "trl/kl": 0.1,
        "rollout/exact_mean": 0.25,
        "trl/mtp/loss_depth_2": 2.0,
        "trl/rewards/env/mean": 0.5,
    }


@pytest.fixture
def sums():
    env = make_text_vec("worldmtp/ChainSum-v0", 4, pool_size=32)
    env.dataset.choose_pools(0)
    return env


def test_the_pool_gives_each_question_once(sums):
    drawn = sums.dataset.pool("train").examples
    sums.dataset._pools["train"] = sums.dataset.encode([*drawn, *drawn])
    found = pool_of(sums, 64)
    assert [example.key for example in found] == list(dict.fromkeys(example.key for example in drawn))
    assert pool_of(sums, 3) == found[:3]


def test_texts_are_labelled_on_answers_or_on_all(sums):
    examples = [Example("1+2=", "3"), Example("no answer", None)]
    ids = [[*sums.tokenizer.encode("1+2=3"), sums.tokenizer.eos_id]]
    answers, everything = (texts(sums, examples, sums.tokenizer.vocab_size, learns) for learns in (False, True))
    assert answers["input_ids"] == everything["input_ids"] == everything["labels"] == ids
    assert answers["labels"] == [[-100] * 4 + ids[0][4:]]


def test_sampled_answers_are_whole_and_scored_by_the_task(sums, tiny_trunk):
    trunk = tiny_trunk("qwen3", vocab_size=sums.tokenizer.vocab_size)
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=2), torch.Generator().manual_seed(0))
    examples = pool_of(sums, 7)
    answers = sample_answers(model, sums, examples, 6, 1.0, seed=3)
    assert answers == sample_answers(model, sums, examples, 6, 1.0, seed=3)
    assert answers != sample_answers(model, sums, examples, 6, 1.0, seed=4)
    assert 0 < len(answers) < 42  # by chance some are cut off, or have padding inside
    by_prompt = {example.prompt: example for example in examples}
    for answer in answers:
        assert set(answer.text) <= set("0123456789+-=")
        ids = np.array(sums.tokenizer.encode(answer.text), dtype=np.int64)
        assert answer.score == sums.task.score(by_prompt[answer.prompt], answer.text, ids).value


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PostTrainingConfig, {"trainer": "gpro"}, "trainer='gpro' is unknown; did you mean 'grpo'"),
        (PostTrainingConfig, {"num_steps": 0}, "num_steps=0 must be at least 1"),
        (PostTrainingConfig, {"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        (PostTrainingConfig, {"beta": -0.1}, "beta=-0.1 must be finite and at least 0"),
        (PostTrainingHeadsConfig, {"coef": -1.0}, "coef=-1.0 must be finite and at least 0"),
    ],
)
def test_values_out_of_range_are_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
