"""``worldmtp envs list`` and ``worldmtp envs check <id>``: what there is, whether it is sound, what baselines earn."""

import fnmatch
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worldmtp.choices import nearest
from worldmtp.envs import TextGenEnv, TextGenVectorEnv, TextVectorEnv, check_vector_env
from worldmtp.envs.baselines import Baseline, play_baselines, play_ends
from worldmtp.envs.checks import TextEnvReport, check_text_env
from worldmtp.envs.dataset import SplitError
from worldmtp.envs.make import Description, Lengths, describe, find_spec, make_text_vec, text_env_ids
from worldmtp.envs.task import TurnTask
from worldmtp.envs.wrappers.autoreset import with_autoreset
from worldmtp.statistics import Interval, bootstrap_interval, wilson_interval

_PIPED_WIDTH = 200
_SMALL_POOL = 64
_HEADERS = ("id", "kind", "prompt", "answer", "max_prompt", "max_new", "vocabulary", "universe", "what")
_POOL_SIZE = 512
_NUM_EXAMPLES = 64
_SHOWN = 40


def list_envs(pattern: str, imported: Sequence[str], *, as_json: bool) -> None:
    """Print the ids that match, those of user modules among them; one that needs kwargs says which.

    Raises:
        ValueError: no id matches.
    """
    ids = sorted({*text_env_ids(), *imported})
    chosen = [env_id for env_id in ids if _matches(env_id, pattern)]
    if not chosen:
        names = {env_id.lower().rpartition("/")[2].rpartition("-v")[0]: env_id for env_id in ids}
        near = nearest(pattern.lower(), names)
        meant = "" if near is None else f"did you mean {names[near]!r}? "
        raise ValueError(f"no id matches {pattern!r}; {meant}worldmtp envs list shows all {len(ids)}.")
    described = {env_id: _described(env_id) for env_id in chosen}
    if as_json:
        print(
            json.dumps(
                {env_id: {"error": it} if isinstance(it, str) else it.as_dict() for env_id, it in described.items()}
            )
        )
        return
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in _HEADERS:
        table.add_column(header, no_wrap=header == "id", overflow="fold")
    for env_id, it in described.items():
        table.add_row(env_id, *(_cells(it) if isinstance(it, Description) else [""] * 7 + [it]))
    console.print(table)
    console.print(
        "Lengths are tokens, median/most of a small draw, EOS not counted. worldmtp envs check <id> says more."
    )


def _matches(env_id: str, pattern: str) -> bool:
    name, wanted = env_id.lower(), pattern.lower()
    return fnmatch.fnmatchcase(name, wanted) if "*" in wanted or "?" in wanted else wanted in name


def _described(env_id: str) -> Description | str:
    """Return the description; or why there is none, of an environment that cannot be made without kwargs."""
    try:
        return describe(env_id, pool_size=_SMALL_POOL)
    except (ValueError, TypeError, OSError) as error:
        return f"needs --kwargs: {error}"


def _cells(it: Description) -> list[str]:
    answer = "none" if it.answer is None else _short(it.answer)
    universe = "" if it.universe_size is None else str(it.universe_size)
    sizes = [str(size) for size in (it.max_prompt, it.max_new, it.vocab_size)]
    return [it.kind, _short(it.prompt), answer, *sizes, universe, it.what]


def _short(lengths: Lengths) -> str:
    return f"{lengths.median:g}/{lengths.max}"


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
    # Probes of the task's own are estimates, and so held to the bound with a margin (``check_text_env``).
    margin = " and a margin of chance" if report.probe_value > bound else ""
    print(
        f"  hack probes    largest mean value {report.probe_value:.3f}, bound {bound:.3f}{margin}; "
        f"{report.scorer_errors} scorer errors\n"
        f"  split overlap  {report.prompt_overlap:.3f} of {examples} held-out questions, {one.overlap():.3f} of pools\n"
        f"  universe       {universe}"
    )
    if isinstance(one.task, TurnTask):
        for line in _lines_of_ends(one.task, num_episodes, seed, one.dataset.heldout_fraction):
            print(f"  {line}")
    print(f"  baselines      mean score with its 90 % interval; {num_episodes} held-out episodes each, seed {seed}")
    for baseline in play_baselines(make, num_episodes, seed):
        print(f"    {_line(baseline, seed)}")
    print(f"PASS {it.id}")


def _check_single(env_id: str, one: TextGenVectorEnv, num_examples: int, kwargs: dict[str, Any]) -> TextEnvReport:
    try:
        if env_id not in text_env_ids():  # it speaks text, and is checked as the world of a text env
            return check_text_env(TextGenEnv(one.config), num_examples)
        return check_text_env(env_id, num_examples, **kwargs)
    except SplitError as error:
        error.add_note(f"The check asked for {num_examples} questions of each split; --examples asks for fewer.")
        raise


def _enough_examples(universe_size: int | None) -> int:
    """Return how many questions to ask of a split: half of a fifth of a stated universe, which the smaller one has."""
    return _NUM_EXAMPLES if universe_size is None else max(1, min(_NUM_EXAMPLES, universe_size // 10))


def _lines_of_ends(task: TurnTask, num_episodes: int, seed: int, heldout_fraction: float) -> list[str]:
    """Return what random moves and the world's own player earn, or that the world does not say."""
    ends = play_ends(task, num_episodes, seed, heldout_fraction=heldout_fraction)
    floor = "not known: the world has no moves()" if ends.floor is None else f"{_mean(ends.floor)}: random legal moves"
    ceiling = "not known: the world has no player()"
    if ends.ceiling is not None:
        ceiling = f"{_mean(ends.ceiling)}: the world's own player"
        if ends.optimum is not None:
            ceiling += f"; the best one earns {ends.optimum.mean():.3f} by the world's own word (optimal_value)"
    return [f"floor          {floor}", f"ceiling        {ceiling}"]


def _mean(scores: np.ndarray) -> str:
    error = float("nan") if len(scores) < 2 else scores.std(ddof=1) / len(scores) ** 0.5
    return f"{scores.mean():.3f}, standard error {error:.3f}, {len(scores)} held-out episodes"


def _line(baseline: Baseline, seed: int) -> str:
    says = "" if not baseline.says else f"  {_shortened(baseline.says)!r}"
    if len(baseline.scores) < 2:
        return f"{baseline.name:<16} {baseline.scores.mean():.3f}, of one episode{says}"
    return f"{baseline.name:<16} {_interval(baseline.scores, seed)}{says}"


def _interval(scores: np.ndarray, seed: int) -> Interval:
    """Return the interval of the mean: Wilson's for scores of 0 and 1, as a bootstrap of equal values has no width."""
    if np.isin(scores, (0.0, 1.0)).all():
        return wilson_interval(int(scores.sum()), len(scores), unit="episode")
    return bootstrap_interval(scores, generator=seed, unit="episode")


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
