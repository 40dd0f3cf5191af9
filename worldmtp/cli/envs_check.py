"""``worldmtp envs check <id>``: the checks of the package, and what players earn who know nothing."""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from worldmtp.envs import TextGenEnv, TextGenVectorEnv, TextVectorEnv, check_vector_env
from worldmtp.envs.baselines import Baseline, play_baselines
from worldmtp.envs.checks import TextEnvReport, check_text_env
from worldmtp.envs.make import describe, find_spec, make_text_vec, text_env_ids
from worldmtp.envs.wrappers.autoreset import with_autoreset
from worldmtp.statistics import Interval, bootstrap_interval, wilson_interval

_POOL_SIZE = 512
_NUM_EXAMPLES = 64
_SHOWN = 40


def check_env(
    env_id: str, kwargs: dict[str, Any], num_episodes: int = 200, seed: int = 0, num_examples: int | None = None
) -> None:
    """Print what the checks find, then the baselines, then PASS.

    Raises:
        AssertionError: a check fails; what was seen and what was expected.
        ValueError: the environment cannot be made, or its splits cannot be filled.
    """
    # A pool is drawn anew for each of the environments that the checks make.
    kwargs = {"pool_size": _POOL_SIZE} | kwargs
    spec = find_spec(env_id)
    it = describe(env_id, seed=seed, **kwargs)
    print(f"{it.id}: {it.what}" if it.what else it.id)
    answer = "none to show" if it.answer is None else f"{it.answer.median:g} tokens, {it.answer.max} at most"
    print(
        f"  kind           {it.kind}\n"
        f"  prompt         {it.prompt.median:g} tokens, {it.prompt.max} at most; room for {it.max_prompt}\n"
        f"  answer         {answer}; room for {it.max_new}, EOS included\n"
        f"  vocabulary     {it.vocab_size}"
    )

    def make(num_envs: int, mode: AutoresetMode = AutoresetMode.DISABLED) -> TextVectorEnv:
        # The contract is that of the text env: its checks act at random, which a mask around it would refuse.
        rows: TextGenVectorEnv = make_text_vec(spec.id, num_envs, **kwargs).unwrapped  # type: ignore[assignment]
        rows.copy = True
        made: TextVectorEnv = with_autoreset(rows, mode)  # type: ignore[assignment]
        return made

    one: TextGenVectorEnv = make(1)  # type: ignore[assignment]  # no mode is asked for
    bound = float(getattr(one.task, "probe_bound", 0.0))
    examples = num_examples or _enough_examples(it.universe_size)
    report = _check_single(spec.id, one, examples, kwargs)
    print("  single env     passed: gymnasium's check_env, token contract, rewards, splits")
    check_vector_env(make)
    print("  vector env     passed: all autoreset modes, seeding, fresh arrays, final observations")
    universe = "not stated" if it.universe_size is None else f"{it.universe_size} different questions"
    print(
        f"  hack probes    largest mean value {report.probe_value:.3f}, bound {bound:.3f}; "
        f"{report.scorer_errors} scorer errors\n"
        f"  split overlap  {report.prompt_overlap:.3f} of {examples} held-out questions, {one.overlap():.3f} of pools\n"
        f"  universe       {universe}\n"
        f"  baselines      mean score with its 90 % interval; {num_episodes} held-out episodes each, seed {seed}"
    )
    for baseline in play_baselines(make, num_episodes, seed):
        print(f"    {_line(baseline, seed)}")
    print(f"PASS {it.id}")


def _check_single(env_id: str, one: TextGenVectorEnv, num_examples: int, kwargs: dict[str, Any]) -> TextEnvReport:
    try:
        if env_id not in text_env_ids():  # it speaks text, and is checked as the world of a text env
            return check_text_env(TextGenEnv(one.config), num_examples)
        return check_text_env(env_id, num_examples, **kwargs)
    except ValueError as error:
        error.add_note(f"The check asked for {num_examples} questions of each split; --examples asks for fewer.")
        raise


def _enough_examples(universe_size: int | None) -> int:
    """Distinct questions to ask of each split: half of a fifth of a stated universe, which the smaller split has."""
    return _NUM_EXAMPLES if universe_size is None else max(1, min(_NUM_EXAMPLES, universe_size // 10))


def _line(baseline: Baseline, seed: int) -> str:
    says = "" if not baseline.says else f"  {_shortened(baseline.says)!r}"
    if len(baseline.scores) < 2:
        return f"{baseline.name:<16} {baseline.scores.mean():.3f}, of one episode{says}"
    return f"{baseline.name:<16} {_interval(baseline.scores, seed)}{says}"


def _interval(scores: np.ndarray, seed: int) -> Interval:
    """Of the mean. Wilson's where scores are 0 and 1, since a bootstrap of equal values has no width."""
    if np.isin(scores, (0.0, 1.0)).all():
        return wilson_interval(int(scores.sum()), len(scores), unit="episode")
    return bootstrap_interval(scores, generator=seed, unit="episode")


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
