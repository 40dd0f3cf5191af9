"""The prompts of a run: held-out ones, demonstrations of the warm start, and the pool of reinforcement.

Each has a stream of its own, derived from the run's seed. What the warm start has shown is not in the pool, unless
``sft.share_prompts`` says so: else reinforcement would be measured on how well it keeps what it was told. A task with
fewer prompts than were asked for gives what it has, and a note says which key asked.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from worldmtp.atomic_files import write_text
from worldmtp.choices import env_settings
from worldmtp.envs import Example, TextVectorEnv, draw_examples
from worldmtp.envs.config import TextEnvConfig
from worldmtp.training.config import TrainConfig
from worldmtp.training.make import make_env

SHOWN_FILE = "demonstrations.json"
_PROBES, _MISSES_A_PROBE = 64, 50


@dataclass(frozen=True)
class RunPrompts:
    """``notes`` are sentences for the reader of the run: what was asked for and is not there."""

    held_out: list[Example]
    demonstrations: list[Example]
    """What this run's warm start is trained on."""
    shown: frozenset[str]
    """Keys of the questions that the warm start has shown, here or where ``sft.load`` comes from."""
    notes: tuple[str, ...]


def draw_run_prompts(env: TextVectorEnv, config: TrainConfig) -> RunPrompts:
    """Return held-out prompts and demonstrations of the run's seed.

    Raises:
        ValueError: a split has no prompt at all; the message says what widens it.
    """
    held_out = env.examples("heldout", config.eval.num_prompts, config.seed, "evaluation", fewer=True)
    notes, share, given = [], env.dataset.heldout_fraction, env.dataset.config.heldout_fraction
    if share != given:
        notes.append(
            f"env.kwargs.heldout_fraction={given:g}: by it one split of so few prompts would be empty; the share that "
            f"is held out is {share:g} instead."
        )
    if not held_out:
        raise no_prompt(env, f"held-out prompt, and eval.num_prompts={config.eval.num_prompts} asks for some")
    if len(held_out) < config.eval.num_prompts:
        notes.append(
            f"eval.num_prompts={config.eval.num_prompts}: the task has few held-out prompts; evaluation takes the "
            f"{len(held_out)} that were found."
        )
    if config.sft.load is not None:
        loaded = read_shown(Path(config.sft.load).parent)
        if loaded is not None:
            return RunPrompts(held_out, [], loaded, tuple(notes))
        notes.append(
            f"sft.load={config.sft.load}: no {SHOWN_FILE} beside it says which prompts it was shown, so those that "
            "this config's own warm start would show are taken for them."
        )
    if not config.sft.num_steps:
        return RunPrompts(held_out, [], frozenset(), tuple(notes))
    asked = config.sft.num_demonstrations
    drawn = env.examples("train", asked, config.seed, "demonstrations", fewer=True)
    if not drawn:
        raise no_prompt(env, f"training prompt, and sft.num_demonstrations={asked} asks for some")
    shown = [example for example in drawn if example.answer]
    if not shown:
        notes.append(
            f"sft.num_steps={config.sft.num_steps}: no prompt of {config.env.id} comes with an answer to imitate, so "
            "there is no warm start; sft.num_steps=0 says the same."
        )
    elif len(shown) < len(drawn):
        notes.append(
            f"sft.num_demonstrations={asked}: {len(drawn) - len(shown)} of {len(drawn)} prompts have no answer, or an "
            "empty one, and are left out."
        )
    is_small = len(drawn) < asked or not _leaves_room(env, _keys(shown), _pool_seed(config))
    if len(shown) > 1 and not config.sft.share_prompts and is_small:  # a single one is shared, as choose_pool says
        kept = shown[: len(shown) // 2]
        notes.append(
            f"sft.num_demonstrations={asked}: the task has few training prompts ({len(drawn)} drawn); the warm start "
            f"takes {len(kept)} and leaves the others to reinforcement. sft.share_prompts=true gives all to both."
        )
        shown = kept
    return RunPrompts(held_out, shown, _keys(shown), tuple(notes))


def write_shown(directory: Path, prompts: RunPrompts) -> None:
    """Leave beside a warm start's model which questions it is trained on, for the runs that load it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / SHOWN_FILE, json.dumps(sorted(prompts.shown)))


def read_shown(directory: Path) -> frozenset[str] | None:
    """Return the keys that ``write_shown`` left; None where it left none."""
    path = directory / SHOWN_FILE
    return frozenset(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def choose_pool(env: TextVectorEnv, prompts: RunPrompts, config: TrainConfig) -> tuple[float, tuple[str, ...]]:
    """Set the pools of ``env``; the share of the training pool's questions that the warm start shows, and notes.

    Raises:
        ValueError: the task has no training prompt.
    """
    seed = _pool_seed(config)
    notes: tuple[str, ...] = ()
    shown: frozenset[str] = frozenset() if config.sft.share_prompts else prompts.shown
    if shown and not _leaves_room(env, shown, seed):
        shown = frozenset()
        notes = (
            "sft.share_prompts=false: the task has no training prompt beyond those of the warm start, so "
            "reinforcement trains on the same ones.",
        )
    env.dataset.choose_pools(seed, shown)
    pool = _keys(env.dataset.pool("train").examples)
    return len(pool & prompts.shown) / len(pool), notes


def rows_of_run(num_rows: int, prompts: RunPrompts, config: TrainConfig) -> TextVectorEnv:
    """Return more rows of a run's environment, which ask from the run's own training pool."""
    env = make_env(config.env, num_rows)
    choose_pool(env, prompts, config)
    return env


def _keys(examples: Iterable[Example]) -> frozenset[str]:
    return frozenset(example.key for example in examples)


def no_prompt(env: TextVectorEnv, what: str) -> ValueError:
    """Return the error of a split without prompts, with the share that would leave some in both."""
    given = env.dataset.config.heldout_fraction
    share = env.dataset.splitting_share(given or TextEnvConfig.heldout_fraction)
    cure = "; or hold out another share, by " + env_settings({"heldout_fraction": share}) if share != given else ""
    return ValueError(f"the task {type(env.task).__name__} has no {what}; give it more questions{cure}.")


def _pool_seed(config: TrainConfig) -> int:
    """Return the run's seed, unless the environment's own options name one."""
    return int(config.env.kwargs.get("pool_seed", config.seed))


def _leaves_room(env: TextVectorEnv, shown: frozenset[str], seed: int) -> bool:
    """Return whether new training prompts are found readily: at least one in 50 draws, 64 times in a row."""
    found = draw_examples(
        env.task,
        "train",
        _PROBES,
        seed,
        purpose="pool",
        heldout_fraction=env.dataset.heldout_fraction,
        max_misses=_MISSES_A_PROBE,
        excluded=shown,
        fewer=True,
    )
    return len(found) == _PROBES
