"""Held-out evaluation of a run: numbers for the log, an artefact for the analysis, token strips for the eye."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.config import PPOConfig
from worldmtp.agents.evaluation import (
    DepthPredictions,
    Evaluation,
    Evaluator,
    RootImaginations,
    depth_predictions,
    root_imaginations,
)
from worldmtp.agents.rollout import Rollout, action_mask, episode_returns
from worldmtp.analysis import EvalArtefact, depth_scalars, save_artefact
from worldmtp.analysis.artefacts import imagined_strip, token_strip
from worldmtp.analysis.conversations import Episode, episode_of, episodes_markdown, is_conversation, utterances
from worldmtp.analysis.return_agreement import return_agreement
from worldmtp.analysis.scenes import TopTokens, scene_of
from worldmtp.analysis.summary import ArmSummary
from worldmtp.dynamics import WorldModel
from worldmtp.envs import Example, TextVectorEnv
from worldmtp.envs.task import TurnTask
from worldmtp.model import MTPModel
from worldmtp.random import stream_seed
from worldmtp.statistics import Interval, wilson_interval
from worldmtp.tracking import MetricWriter, render_strip
from worldmtp.tracking.scenes import Scene
from worldmtp.training.config import EnvConfig
from worldmtp.training.make import check_fits, make_env
from worldmtp.training.run_prompts import no_prompt

NUM_TOP = 5
"""Likeliest tokens that a scene keeps of each thing said."""
_OPTIMISM = ("eval/return_optimism", "eval/return_optimism_lo90", "eval/return_optimism_hi90")
_EXACT = ("eval/exact", "eval/exact_lo90", "eval/exact_hi90")


@dataclass(frozen=True)
class RunEvaluation:
    """One model, evaluated on the held-out prompts."""

    evaluation: Evaluation
    artefact: EvalArtefact
    exact: Interval
    exact_sampled: Interval
    metrics: dict[str, float]


@dataclass(frozen=True)
class Imagining:
    """How an evaluation imagines: by which world model, how far, how often; None imagines nothing."""

    world_model: WorldModel[Any] | None
    horizon: int
    num_rollouts: int
    seed: int


def evaluate_run(
    model: MTPModel,
    evaluator: Evaluator,
    evaluation: Evaluation,
    imagining: Imagining,
    ppo: PPOConfig,
    tokens_text: Sequence[str],
) -> RunEvaluation:
    """Read the answers with all depths, imagine, and count; nothing here consumes a stream of the training."""
    artefact, _ = read_answers(model, evaluator, evaluation.own, imagining, ppo, tokens_text)
    greedy = evaluation.greedy.exact
    sampled = evaluation.sampled.exact
    exact = wilson_interval(int(greedy.sum()), len(greedy), unit="prompt")
    exact_sampled = wilson_interval(int(sampled.sum()), len(sampled), unit="prompt")
    agreement = return_agreement(artefact, generator=imagining.seed)
    metrics = evaluation.metrics() | depth_scalars(artefact) | exact_scalars(evaluation)
    known = np.isfinite(artefact.realized_return)
    if np.isfinite(artefact.imagined_return).any():
        metrics["eval/return_imagined"] = float(artefact.imagined_return[known].mean())
    metrics["eval/return_realized"] = float(artefact.realized_return[known].mean())
    if agreement.pearson is not None:
        metrics["eval/return_corr"] = agreement.pearson.estimate
    if agreement.kendall is not None:
        metrics["eval/return_kendall"] = agreement.kendall
    if (bias := agreement.bias) is not None:
        metrics |= dict(zip(_OPTIMISM, (bias.estimate, bias.low, bias.high), strict=True))
    return RunEvaluation(evaluation, artefact, exact, exact_sampled, metrics)


def evaluate_between(
    model: MTPModel,
    evaluator: Evaluator,
    env: TextVectorEnv,
    tokens_text: Sequence[str],
    writer: MetricWriter,
    step: int,
) -> tuple[Evaluation, dict[str, float]]:
    """Answer, and read the answers with all depths, without imagining; write entropies and conversations.

    Returns:
        The evaluation, and its numbers by tag.
    """
    found = evaluator.run(model)
    nothing = Imagining(None, 1, 1, seed=0)
    artefact, _ = read_answers(model, evaluator, found.own, nothing, PPOConfig(), tokens_text)
    writer.histogram("eval/entropy", artefact.chain_entropy[artefact.action_mask], step)
    if isinstance(env.task, TurnTask):
        writer.text("samples/heldout", conversations(found.own, tokens_text), step)
    return found, found.metrics() | exact_scalars(found) | depth_scalars(artefact)


def read_answers(
    model: MTPModel,
    evaluator: Evaluator,
    rollout: Rollout,
    imagining: Imagining,
    ppo: PPOConfig,
    tokens_text: Sequence[str],
    num_top: int = 0,
) -> tuple[EvalArtefact, TopTokens]:
    """Read sampled answers with all depths, and imagine from each of their states; with the likeliest tokens of both.

    What is drawn is drawn anew from ``imagining.seed``. Where the environment masks actions nothing is imagined: no
    mask is known of states that are imagined.
    """
    generator = torch.Generator(device=model.device).manual_seed(imagining.seed)
    low, high = model.config.value_range
    with torch.no_grad():
        features = model.trunk_features(rollout.input_ids, rollout.attention_mask)
    said = depth_predictions(model, rollout, evaluator.temperature, features, num_top)
    roots = root_imaginations(
        None if rollout.is_masked else imagining.world_model,
        evaluator.acting((low, high)),
        rollout,
        imagining.horizon,
        imagining.num_rollouts,
        ppo,
        generator,
        features,
        num_top,
    )
    tops = (said.top_ids, said.top_probs, roots.top_ids, roots.top_probs)
    artefact = make_artefact(rollout, said, roots, imagining.horizon, tokens_text)
    return artefact, TopTokens(*(values.cpu().numpy() for values in tops))


def watch(
    model: MTPModel,
    evaluator: Evaluator,
    sampled: Rollout,
    imagining: Imagining,
    ppo: PPOConfig,
    tokens_text: Sequence[str],
    num_scenes: int,
    shows_returns: bool,
) -> list[Scene]:
    """Return the first sampled answers as scenes of the Imagination tab.

    ``shows_returns`` is False where the world heads have learnt nothing, so that what they say of returns is noise.
    """
    few = sampled.select(torch.arange(min(num_scenes, len(sampled)), device=sampled.input_ids.device))
    if not len(few):
        return []
    artefact, tops = read_answers(model, evaluator, few, imagining, ppo, tokens_text, NUM_TOP)
    return [scene_of(artefact, tops, row, shows_returns=shows_returns) for row in range(len(few))]


def make_artefact(
    rollout: Rollout, said: DepthPredictions, roots: RootImaginations, horizon: int, tokens_text: Sequence[str]
) -> EvalArtefact:
    """Return what the analysis needs to know of sampled answers."""
    arrays: dict[str, Any] = {
        "input_ids": rollout.input_ids,
        "attention_mask": rollout.attention_mask,
        "action_mask": action_mask(rollout),
        "prompt_length": rollout.prompt_length,
        "returns": episode_returns(rollout),
        "rewards": rewards_in_place(rollout),
        "exact": rollout.exact,
        "chain_logprob": said.logprobs[..., 0],
        "chain_entropy": said.entropies[..., 0],
        "head_logprob": said.logprobs,
        "head_entropy": said.entropies,
        "head_top1": said.top1_ids,
        "head_top1_prob": said.top1_probs,
        "imagined_return": roots.imagined,
        "realized_return": roots.realized,
        "imagined_tokens": roots.tokens,
        "imagined_token_prob": roots.token_probs,
    }
    return EvalArtefact(
        **{name: value.cpu().numpy() for name, value in arrays.items()},
        imagined_horizon=horizon,
        tokens_text=tuple(tokens_text),
    )


def summarize(found: RunEvaluation, arm: str, artefact: str) -> ArmSummary:
    """Return an evaluation as a row of the closing table."""
    metrics, depths = found.metrics, found.artefact.num_depths
    acceptance = [metrics.get(f"world_model/depth_{depth}/accept") for depth in range(1, depths + 1)]
    return ArmSummary(
        arm=arm,
        exact=found.exact,
        acceptance=tuple(acceptance),
        imagined_return=metrics.get("eval/return_imagined"),
        realized_return=metrics["eval/return_realized"],
        artefact=artefact,
        exact_sampled=found.exact_sampled,
    )


def write_evaluation(found: RunEvaluation, run_dir: Path, name: str, writer: MetricWriter, step: int) -> None:
    """Write the artefact to disk, and the numbers, the entropies and some sampled answers to the log."""
    artefact = found.artefact
    save_artefact(artefact, run_dir / "artefacts", name)
    writer.scalars(found.metrics, step)
    writer.histogram("eval/entropy", artefact.chain_entropy[artefact.action_mask], step)
    writer.text("samples/heldout", samples(found.artefact), step)


def rewards_in_place(rollout: Rollout) -> Float[Tensor, "batch time"]:
    """Return what the action of each token was paid; 0 where the policy wrote none."""
    paid = torch.where(rollout.step_mask, rollout.rewards, 0.0)
    # Steps that are not there write 0 to index 0, a prompt token.
    return paid.new_zeros(rollout.input_ids.shape).scatter(1, rollout.action_index, paid)


def conversations(rollout: Rollout, tokens_text: Sequence[str], num_samples: int = 4) -> str:
    """Return the first episodes of a rollout as markdown, turn by turn."""
    return episodes_markdown(episodes_of(rollout.select(torch.arange(min(num_samples, len(rollout)))), tokens_text))


def episodes_of(rollout: Rollout, tokens_text: Sequence[str]) -> list[Episode]:
    """Return the episodes of a rollout as conversations."""
    part = rollout.to("cpu")
    rewards, returns, is_action = rewards_in_place(part), episode_returns(part), action_mask(part)
    episodes = []
    for row in range(len(part)):
        length = int(part.attention_mask[row].sum())
        columns = part.input_ids, is_action, rewards
        ids, acted, paid = (column[row, :length].numpy() for column in columns)
        said = utterances(ids, acted, paid, tokens_text)
        episodes.append(Episode(said, float(returns[row]), bool(part.exact[row])))
    return episodes


def samples(artefact: EvalArtefact) -> str:
    """Return eight prompts, answers and returns as a list in markdown, or four conversations turn by turn."""
    if is_conversation(artefact):
        return episodes_markdown([episode_of(artefact, row) for row in range(min(4, len(artefact)))])
    lines = []
    for row in range(min(8, len(artefact))):
        texts = [artefact.tokens_text[token] for token in artefact.input_ids[row, : artefact.attention_mask[row].sum()]]
        start = int(artefact.prompt_length[row])
        prompt, answer = "".join(texts[:start]), "".join(texts[start:])
        lines.append(f"* `{prompt!r}` -> `{answer!r}`: {artefact.returns[row]:.2f}")
    return "\n".join(lines)


def write_strips(found: RunEvaluation, writer: MetricWriter, step: int, num_strips: int) -> None:
    """Write the first texts as pictures: realized, and below it what each depth had said, or what was imagined."""
    artefact = found.artefact
    for row in range(min(num_strips, len(artefact))):
        caption = f"return {artefact.returns[row]:.2f}"
        writer.image(f"imagination/predicted_{row}", render_strip(token_strip(artefact, row, caption)), step)
        if np.isfinite(artefact.imagined_token_prob[row]).any():
            writer.image(f"imagination/imagined_{row}", render_strip(imagined_strip(artefact, row, caption)), step)


@dataclass(frozen=True)
class CheckpointEvaluation:
    """Any causal LM, evaluated on held-out prompts of an environment.

    ``exact`` is of greedy answers, ``exact_sampled`` of answers sampled at ``temperature``; scores are means.
    """

    num_prompts: int
    temperature: float
    exact: Interval
    exact_sampled: Interval
    score: float
    score_sampled: float
    length_mean: float
    truncated_fraction: float


def evaluate_model(
    model: MTPModel, env: EnvConfig, num_prompts: int, temperature: float = 1.0, seed: int = 0
) -> CheckpointEvaluation:
    """Answer held-out prompts greedily and by sampling, without training.

    With the config and the seed of a run these are the prompts and the draws of that run's own evaluations.

    Raises:
        ValueError: the environment cannot be made, has no held-out prompt, or does not fit the model.
    """
    rows, examples = heldout_rows(model, env, num_prompts, seed)
    evaluation = Evaluator(rows, examples, temperature, stream_seed(seed, "evaluation")).run(model)
    metrics = evaluation.metrics()
    return CheckpointEvaluation(
        num_prompts=len(examples),
        temperature=temperature,
        exact=_share(evaluation.greedy),
        exact_sampled=_share(evaluation.sampled),
        score=metrics["eval/score"],
        score_sampled=metrics["eval/score_sampled"],
        length_mean=metrics["eval/length_mean"],
        truncated_fraction=metrics["eval/truncated_fraction"],
    )


def exact_scalars(evaluation: Evaluation) -> dict[str, float]:
    """Return the greedy exact match with its interval; TensorBoard's margins need all three at the same steps."""
    exact = _share(evaluation.greedy)
    return dict(zip(_EXACT, (exact.estimate, exact.low, exact.high), strict=True))


def _share(rollout: Rollout) -> Interval:
    return wilson_interval(int(rollout.exact.sum()), len(rollout), unit="prompt")


def heldout_rows(
    model: MTPModel, env: EnvConfig, num_prompts: int, seed: int
) -> tuple[TextVectorEnv, Sequence[Example]]:
    """Return an environment with a row for each of the held-out prompts, and these.

    Raises:
        ValueError: the environment cannot be made, has no held-out prompt, or does not fit the model.
    """
    env = replace(env, kwargs={"pool_size": 1} | env.kwargs)
    probe = make_env(env, 1)
    check_fits(model.config, probe)
    examples = probe.examples("heldout", num_prompts, seed, "evaluation", fewer=True)
    if not examples:
        raise no_prompt(probe, "held-out prompt")
    return make_env(env, len(examples)), examples
