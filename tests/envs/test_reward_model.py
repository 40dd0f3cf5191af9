"""A reward model's values are what transformers itself says of the same text."""

import json
import pickle

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from worldmtp.envs import Example, Scorer
from worldmtp.envs.scoring import BatchScoringTask
from worldmtp.envs.tasks.reward_model import RewardModelTask
from worldmtp.envs.tasks.strings import Copy

NO_IDS = np.zeros(0, dtype=np.int64)
EXAMPLES = [Example("abc=", "abc"), Example("ba=", "ba"), Example("cccc=", "cccc")]
TEXTS = ["abc", "b", "accab"]


def logits_by_hand(path, text):
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        return model.eval()(**tokenizer(text, return_tensors="pt")).logits[0].double()


@pytest.mark.parametrize(
    ("labels", "problem_type", "label", "expected"),
    [
        (["reward"], None, None, lambda logits: 1 / (1 + (-logits[0]).exp())),
        (["bad", "good", "fine"], None, "good", lambda logits: logits[1].exp() / logits.exp().sum()),
        (["bad", "good", "fine"], None, 2, lambda logits: logits[2].exp() / logits.exp().sum()),
        (["bad", "good"], "multi_label_classification", "good", lambda logits: 1 / (1 + (-logits[1]).exp())),
    ],
)
def test_values_are_the_probabilities_of_the_model(checkpoint, labels, problem_type, label, expected):
    path = checkpoint(labels, problem_type)
    task = RewardModelTask(path, Copy(alphabet="abc"), label=label)
    for example, text in zip(EXAMPLES, TEXTS, strict=True):
        value = float(expected(logits_by_hand(path, example.prompt + text)))
        score = task.score(example, text, NO_IDS)
        assert 0.0 < score.value < 1.0
        assert score.value == pytest.approx(value, abs=1e-6)  # one float32 network, run twice
        assert score.exact == (value >= 0.5)


def test_batches_are_what_single_answers_are(checkpoint):
    path = checkpoint(["reward"])
    answers = [(example, text, NO_IDS) for example in EXAMPLES for text in TEXTS]
    alone = [RewardModelTask(path, Copy()).score(*answer).value for answer in answers]
    assert len(set(alone)) == len(alone)  # so that order is tested too
    task = RewardModelTask(path, Copy(), batch_size=4)
    assert isinstance(task, BatchScoringTask)
    assert [score.value for score in task.score_batch(answers)] == pytest.approx(alone, abs=1e-6)
    scorer = Scorer(task)
    assert [score.value for score in scorer.score_batch(answers)] == pytest.approx(alone, abs=1e-6)
    assert (scorer.counters.scored, scorer.counters.errors) == (9, 0)
    one_by_one = RewardModelTask(path, Copy())
    assert [score.value for score in one_by_one.score_batch(answers)] == alone  # to the last bit


def test_prompts_are_another_tasks_and_its_answers_are_shown_on_request(checkpoint):
    path = checkpoint(["reward"])
    for show_answers in (False, True):
        task = RewardModelTask(path, "Copy", {"alphabet": "abc"}, show_answers=show_answers)
        example = task.sample(np.random.default_rng(0), "train")
        original = Copy(alphabet="abc").sample(np.random.default_rng(0), "train")
        assert example == Example(original.prompt, original.answer if show_answers else None)


def test_the_template_joins_prompt_and_text(checkpoint):
    path = checkpoint(["reward"])
    score = RewardModelTask(path, Copy(), template="{text}a{prompt}").score(EXAMPLES[0], "{b}", NO_IDS)
    assert score.value == pytest.approx(float(logits_by_hand(path, "{b}aabc=").sigmoid()), abs=1e-6)


def test_a_scoring_process_is_sent_no_model(checkpoint):
    task = RewardModelTask(checkpoint(["reward"]), Copy())
    before = task.score(EXAMPLES[0], "abc", NO_IDS)
    sent = pickle.dumps(task)
    assert len(sent) < 2000
    assert pickle.loads(sent).score(EXAMPLES[0], "abc", NO_IDS) == before


def test_a_text_that_cannot_be_judged_is_counted_and_the_others_are_judged(checkpoint):
    task = RewardModelTask(checkpoint(["reward"]), Copy(), max_length=8, batch_size=4)
    scorer = Scorer(task)
    answers = [(EXAMPLES[0], "abc", NO_IDS), (EXAMPLES[0], "abcabc", NO_IDS), (EXAMPLES[1], "b", NO_IDS)]
    with pytest.warns(RuntimeWarning, match=r"a judged text has 10 tokens; expected 1\.\.8"):
        scores = scorer.score_batch(answers)
    assert [score.reason for score in scores] == ["ok", "error", "ok"]
    assert [scores[0], scores[2]] == [task.score(*answers[0]), task.score(*answers[2])]
    assert (scorer.counters.scored, scorer.counters.errors) == (3, 1)


def test_a_special_token_of_the_judge_cannot_be_spelled(checkpoint):
    """What reads as a border is the template's to write; the judge's [UNK] is one of its special tokens."""
    path = checkpoint(["reward"])
    task = RewardModelTask(path, Copy(), batch_size=4)
    answers = [(EXAMPLES[0], text, NO_IDS) for text in ("abc", "a[PAD]", "[UNK]", "[P")]
    scores = task.score_batch(answers)
    assert [score.reason for score in scores] == ["ok", "special_token", "special_token", "ok"]
    assert [score.value for score in scores[1:3]] == [0.0, 0.0]
    assert scores[3].value == pytest.approx(task.score(*answers[3]).value, abs=1e-6)
    assert task.score(EXAMPLES[0], "a\ufffdb", NO_IDS).reason == "special_token"  # one of the policy's own, as padding
    assert RewardModelTask(path, Copy(), template="{prompt}[UNK]{text}").score(*answers[0]).reason == "ok"
    with pytest.raises(ValueError, match=r"the prompt 'a\[PAD\]=' spells '\[PAD\]', a special token of"):
        task.score(Example("a[PAD]="), "a", NO_IDS)


def test_what_is_missing_is_told(checkpoint, tmp_path):
    path = checkpoint(["bad", "good"])
    for label, message in [
        (None, r"label=None of .* say which label is good\. Its labels: \['bad', 'good'\]"),
        ("goood", "did you mean 'good'"),
        (2, "label=2 of"),
    ]:
        with pytest.raises(ValueError, match=message):
            RewardModelTask(path, Copy(), label=label)
    with pytest.raises(ValueError, match=r"is no directory with a config\.json; save one with model\.save_pretrained"):
        RewardModelTask(tmp_path / "none", Copy())
    with pytest.raises(ValueError, match=r"a reward model needs a checkpoint .*task_kwargs\.prompts="):
        RewardModelTask(path)
    with pytest.raises(ValueError, match=r"template='\{prompt\}' must name \{prompt\} and \{text\}"):
        RewardModelTask(path, Copy(), label=1, template="{prompt}")
    with pytest.raises(ValueError, match="batch_size=0 and max_length=None must be positive"):
        RewardModelTask(path, Copy(), label=1, batch_size=0)


def test_a_checkpoint_without_a_head_or_a_tokenizer_is_refused_before_anything_is_judged(checkpoint, tmp_path):
    """A head that transformers draws at random would judge at random, and a score that raises pays 0."""
    path = checkpoint(["reward"])
    AutoModelForSequenceClassification.from_pretrained(path).base_model.save_pretrained(path)
    with pytest.raises(ValueError, match=r"missing weights: classifier\.bias, classifier\.weight"):
        RewardModelTask(path, Copy())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / path / name).unlink()
    with pytest.raises(ValueError, match=r"there is no tokenizer at .*: none of .* tokenizer\.save_pretrained writes"):
        RewardModelTask(path, Copy())


def test_nothing_is_fetched_for_a_reward_model(checkpoint, monkeypatch):
    path = checkpoint(["reward"])
    asked = []
    for cls in (AutoConfig, AutoTokenizer, AutoModelForSequenceClassification):
        read = cls.from_pretrained

        def recorded(*args, read=read, **kwargs):
            asked.append(kwargs.get("local_files_only"))
            return read(*args, **kwargs)

        monkeypatch.setattr(cls, "from_pretrained", recorded)
    RewardModelTask(path, Copy()).score(EXAMPLES[0], "abc", NO_IDS)
    assert len(asked) >= 5
    assert set(asked) == {True}


def test_batches_need_a_padding_token(checkpoint):
    path = checkpoint(["reward"], pad_token=None)
    answers = [(EXAMPLES[0], "a", NO_IDS), (EXAMPLES[0], "ab", NO_IDS)]
    assert len(RewardModelTask(path, Copy()).score_batch(answers)) == 2
    with pytest.raises(ValueError, match="has no padding token; set batch_size=1"):
        RewardModelTask(path, Copy(), batch_size=2).score_batch(answers)


def test_an_env_of_a_data_file_and_a_reward_model(checkpoint, tmp_path):
    import gymnasium

    rows = [{"prompt": f"{a}{b}{c}="} for a in "abc" for b in "abc" for c in "abc"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = checkpoint(["reward"])
    envs = gymnasium.make_vec(
        "worldmtp/Data-v0",
        num_envs=3,
        task="worldmtp.envs.tasks.reward_model:RewardModelTask",
        task_kwargs={
            "checkpoint": path,
            "prompts": "Copy",
            "prompts_kwargs": {"alphabet": "abc", "min_length": 2, "max_length": 4},
            "batch_size": 4,
        },
        tokenizer="char:abc=",
        pool_size=16,
        autoreset_mode="disabled",
    )
    _, infos = envs.reset(seed=0)
    prompts = infos["prompt_text"].tolist()
    _, rewards, *_ = envs.step(np.ones(3, dtype=np.int64))  # EOS at once: the prompts are judged
    assert rewards == pytest.approx([float(logits_by_hand(path, prompt).sigmoid()) for prompt in prompts], abs=1e-6)
    envs.close()
