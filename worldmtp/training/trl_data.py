"""What TRL's trainers train on in a run: texts, preferences made of the policy's own scored answers, or prompts.

All of it comes from the training pool of the run's environment, each question once.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import Rollout, collect_rollout, episode_returns
from worldmtp.atomic_files import write_text
from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.envs import Example, TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.post_training import build_demonstrations


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer of the policy, without the end of text that it closed with, and its return."""

    prompt: str
    text: str
    score: float


def pool_of(env: TextVectorEnv, num_prompts: int) -> list[Example]:
    """Return the first questions of the training pool, each once."""
    by_key: dict[str, Example] = {}
    for example in env.dataset.pool("train").examples:
        by_key.setdefault(example.key, example)
    return list(by_key.values())[:num_prompts]


def texts(env: TextVectorEnv, examples: Sequence[Example], vocab_size: int, learns_prompts: bool) -> Dataset:
    """Return prompts with their answers as token ids; labels on the answers alone, or on all.

    Raises:
        ValueError: no example has an answer, or one does not fit the vocabulary.
    """
    encode = env.tokenizer.encode
    pairs = [(encode(example.prompt), encode(example.answer)) for example in examples if example.answer is not None]
    rows = build_demonstrations(pairs, eos_token_id=env.tokenizer.eos_id, vocab_size=vocab_size)
    return Dataset.from_dict({"input_ids": rows["input_ids"], "labels": rows["input_ids"]}) if learns_prompts else rows


def sample_answers(
    model: MTPModel, env: TextVectorEnv, examples: Sequence[Example], group_size: int, temperature: float, seed: int
) -> list[ScoredAnswer]:
    """Return ``group_size`` answers of the model to each question.

    Left out are those that were cut off, and those that their text does not say whole: TRL is given text.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    policy = TrunkPolicy(model, temperature)
    asked = [example for example in examples for _ in range(group_size)]
    found: list[ScoredAnswer] = []
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(asked), env.num_envs):
            batch = asked[start : start + env.num_envs]
            padded = [*batch, *[batch[-1]] * (env.num_envs - len(batch))]
            rollout = collect_rollout(env, policy, generator, {"prompts": padded, "group_size": 1})
            found += _finished(rollout, batch, env)
    return found


def _finished(rollout: Rollout, examples: Sequence[Example], env: TextVectorEnv) -> list[ScoredAnswer]:
    returns = episode_returns(rollout).tolist()
    answers = []
    for row, example in enumerate(examples):
        ids = rollout.input_ids[row, int(rollout.prompt_length[row]) : int(rollout.attention_mask[row].sum())].tolist()
        if ids and ids[-1] == env.tokenizer.eos_id and env.tokenizer.pad_id not in ids:
            text = env.tokenizer.decode(ids[:-1])
            if env.tokenizer.encode(text) == ids[:-1]:
                answers.append(ScoredAnswer(example.prompt, text, returns[row]))
    return answers


def preference_pairs(answers: Sequence[ScoredAnswer]) -> list[dict[str, str]]:
    """Return the best and the worst answer to each prompt, where they differ in score; ties go to the first sampled.

    Raises:
        ValueError: no prompt has answers of different scores.
    """
    by_prompt: dict[str, list[ScoredAnswer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    pairs = []
    for prompt, group in by_prompt.items():
        best, worst = max(group, key=lambda one: one.score), min(group, key=lambda one: one.score)
        if best.score > worst.score and best.text != worst.text:  # a score may have luck in it
            pairs.append({"prompt": prompt, "chosen": best.text, "rejected": worst.text})
    if not pairs:
        raise ValueError(_alike(answers, "no prompt has answers of different scores"))
    return pairs


def labelled_answers(answers: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    """Return every answer, desirable where its score is above the mean of all.

    Raises:
        ValueError: all scores are equal.
    """
    mean = sum(answer.score for answer in answers) / max(1, len(answers))
    rows = [{"prompt": one.prompt, "completion": one.text, "label": one.score > mean} for one in answers]
    if not any(row["label"] for row in rows):
        raise ValueError(_alike(answers, "all answers have the same score"))
    return rows


def _alike(answers: Sequence[ScoredAnswer], what: str) -> str:
    scores = sorted({answer.score for answer in answers})
    return (
        f"{what}: {len(answers)} finished answers of the warm start have the scores {scores[:4]}, so there is nothing "
        "to prefer; raise sft.num_steps, post_training.num_prompts or post_training.group_size."
    )


def keep_answers(path: Path, answers: Sequence[ScoredAnswer]) -> None:
    """Write them, a line each, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(asdict(answer)) + "\n" for answer in answers))


def kept_answers(path: Path) -> list[ScoredAnswer]:
    """Return what ``keep_answers`` wrote."""
    return [ScoredAnswer(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
