"""Checks of a single text environment: gymnasium's own, the token contract, splits, worlds, and probes of its score.

Worlds are decided by their seed and by what is said to them, and by nothing else. Checks raise AssertionError with what
was seen and what was expected, as ``gymnasium.utils.env_checker`` does.
"""

import inspect
import itertools
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from worldmtp.envs.scoring import Scorer, checked_reply
from worldmtp.envs.task import Example, Task, TextWorld, TurnTask, opening_of
from worldmtp.envs.tasks.function import FunctionTask
from worldmtp.envs.text_env import OBSERVATION_KEYS
from worldmtp.envs.tokenizer import Tokenizer
from worldmtp.envs.worlds.players import WorldWithMoves
from worldmtp.envs.worlds.task import WorldTask

_CONTENT_FREE = (
    "",
    " ",
    "\n",
    "zz",
    "0123456789",
    "1" * 200,
    "abcdefghijklmnopqrstuvwxyz",
    "None",
    "NaN",
    "inf",
    "\u2603\U0001f600\u0000",
    "\u0661\u0662\u0663",
    "{}[]()\\\"'%s",
    "answer",
)
_MOST_TURNS = 50


@dataclass(frozen=True)
class TextEnvReport:
    """What ``check_text_env`` measured."""

    probe_value: float
    oracle_value: float
    prompt_overlap: float
    scorer_errors: int


def hack_probes(answer: str | None = None) -> tuple[str, ...]:
    """Texts that deserve nothing whatever the question; with an answer, texts that hide it among others."""
    if answer is None:
        return _CONTENT_FREE
    return (f"{answer} zz", f"zz {answer}", f"{answer}\n{answer} zz", "".join(_CONTENT_FREE[4:6]) + answer + "zz" * 50)


def check_hack_probes(
    task: Task, examples: list[Example], more: Sequence[str] = (), moves: Collection[str] = ()
) -> tuple[float, int]:
    """The largest mean value of a content-free text, or one of ``more``, over the examples; how many scorings raised.

    Texts in ``more`` may mean something, as single letters do in many worlds, and the best of many is picked: they are
    held to the bound with Hoeffding's margin, for one false alarm in 1000 checks. What is among ``moves``, a world's
    legal ones, is an answer, however short, and no probe.

    Raises:
        AssertionError: if that value is above the task's ``probe_bound``, or an answer hidden among other text gets a
            full score, or a value is outside [0, 1].
    """
    scorer, no_ids = Scorer(task), np.zeros(0, dtype=np.int64)
    bound = float(getattr(task, "probe_bound", 0.0))
    means: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        margin = math.sqrt(math.log(1000 * max(1, len(more))) / (2 * len(examples)))
        slack = dict.fromkeys(more, margin) | dict.fromkeys(hack_probes(), 0.0)
        for probe in [one for one in slack if one not in moves]:
            scores = scorer.score_batch([(example, probe, no_ids) for example in examples])
            assert all(0.0 <= score.value <= 1.0 for score in scores), f"{probe!r} is scored outside [0, 1]."
            means[probe] = float(np.mean([score.value for score in scores]))
        worst = max(means, key=lambda probe: means[probe] - slack[probe])
        needed = means[worst] - slack[worst]
        assert needed <= bound, (
            f"{worst!r}, which answers nothing, earns {means[worst]:.3f} on average; the task's probe_bound is {bound}."
            f" {_remedies(task, worst, means[worst], may_be_move=worst in more and not moves)}"
        )
        for example in examples:
            for probe in hack_probes(example.answer) if example.answer else ():
                score = scorer.score(example, probe, no_ids)
                assert max(score.value, float(score.exact)) < 1.0, (
                    f"{probe!r} gets the full score for {example.prompt!r}: the answer is only hidden in it."
                )
    return max(means.values()), scorer.counters.errors


def _remedies(task: Task, worst: str, earned: float, may_be_move: bool) -> str:
    """Return what to change where a probe earns too much, the likeliest first.

    The bound is what it earned. With the margin of chance less would do, and would say of the task what is not so.
    """
    setting = _bound_setting(task, earned)
    if not isinstance(task, TurnTask):
        return f"Harden the score; or, if partial credit is meant, state how much: {setting}."
    if may_be_move:  # one line of the registration does; moves() is a method to write, and asks for all that is legal
        return (
            f"If {worst!r} may be said in this world, state what saying it in every turn may earn: {setting}; or give "
            "the world moves(), the texts that are legal now, which are not probed. If not, let step() pay nothing for "
            "it."
        )
    return (
        "Let step() pay nothing for it; or, if saying it in every turn is meant to earn that much, state so: "
        f"{setting}."
    )


def _bound_setting(task: Task, earned: float) -> str:
    """Return how a task is told what content-free text may earn."""
    bound = math.ceil(100 * earned) / 100
    if isinstance(task, (FunctionTask, WorldTask)):
        return f"probe_bound={bound} of register_task, or --kwargs task_kwargs.probe_bound={bound}"
    if "probe_bound" in inspect.signature(type(task)).parameters:
        return f"--kwargs task_kwargs.probe_bound={bound}"
    return f"probe_bound = {bound} in the class {type(task).__name__}"


def check_text_env(env: str | gymnasium.Env[Any, Any], num_examples: int = 64, **env_kwargs: Any) -> TextEnvReport:
    """Check a text environment: gymnasium's ``check_env`` without a warning, the token contract, splits and probes.

    Args:
        env: a gymnasium id, or an environment with ``task``, ``tokenizer`` and ``examples`` like ``TextGenEnv``.
        num_examples: examples per split to measure on; fewer for slow or small tasks.
        **env_kwargs: what ``gymnasium.make`` is given with an id.

    Raises:
        AssertionError: what was seen and what was expected.
    """
    made: Any = gymnasium.make(env, **env_kwargs).unwrapped if isinstance(env, str) else env.unwrapped
    _check_env(made)
    if isinstance(env, str):  # check_env closes what it checks
        made = gymnasium.make(env, **env_kwargs).unwrapped
    _check_token_contract(made)
    train, heldout = (made.examples(split, num_examples, 0) for split in ("train", "heldout"))
    shared = {example.key for example in train} & {example.key for example in heldout}
    assert not shared, f"train and held-out share questions, such as {sorted(shared)[0]!r} (Example.key)."
    if isinstance(made.task, TurnTask):
        check_worlds(made.task, train[:8], words_of(made.tokenizer))
    no_ids = np.zeros(0, dtype=np.int64)
    oracle = [made.task.score(example, example.answer, no_ids) for example in train if example.answer is not None]
    assert all(score.exact for score in oracle), "an example's own answer is not scored as exact."
    constants, moves = list[str](), frozenset[str]()
    if isinstance(made.task, TurnTask):
        constants, moves = words_of(made.tokenizer), legal_moves(made.task, train)
    probe_value, errors = check_hack_probes(made.task, train, constants, moves)
    made.close()
    return TextEnvReport(
        probe_value=probe_value,
        oracle_value=float(np.mean([score.value for score in oracle])) if oracle else float("nan"),
        prompt_overlap=len(shared) / len(heldout),
        scorer_errors=errors,
    )


def _check_env(env: Any) -> None:
    """Run gymnasium's ``check_env``, in which a warning, its own or of a scorer that fails, is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            check_env(env, skip_render_check=env.spec is None)
        except Warning as warning:
            raise AssertionError(f"gymnasium's check_env met a warning: {_told_by(warning)}") from warning


def _told_by(warning: Warning) -> str:
    """Return what a warning says; of a scorer's, which ends with a traceback: what was scored, the error and its place.

    It is one line, as all that a check raises.
    """
    lines = str(warning).strip().splitlines() or [type(warning).__name__]
    frames = [line.strip() for line in lines[1:-1] if line.lstrip().startswith("File ")]
    if not frames:
        return lines[-1].strip()
    scored = lines[0].partition(" and pays 0; later failures")[0]
    return f"{scored}: {lines[-1].strip()} ({frames[-1]})"


def _check_token_contract(env: Any) -> None:
    space = env.observation_space
    keys = set(space.spaces) if isinstance(space, spaces.Dict) else None
    assert keys == set(OBSERVATION_KEYS), f"the observation space must be a Dict of {OBSERVATION_KEYS}, got {space}."
    assert all(box.dtype == np.int64 for box in space.spaces.values()), f"observations must be int64, got {space}."
    vocab_size, eos_id, pad_id = env.tokenizer.vocab_size, env.tokenizer.eos_id, env.tokenizer.pad_id
    assert pad_id == eos_id or env.tokenizer.decode([pad_id, eos_id]) != "", (
        f"{type(env.tokenizer).__name__}.decode leaves padding out, so an answer with padding inside would be as good "
        "as the answer; leave out EOS and padding at the end, and write what no answer holds for other padding."
    )
    assert env.action_space == spaces.Discrete(vocab_size), (
        f"the action space must be Discrete({vocab_size}), the tokenizer's vocabulary; got {env.action_space}."
    )
    rng = np.random.default_rng(0)
    others = [token for token in range(vocab_size) if token != eos_id]
    eos_terminates = getattr(env, "eos_terminates", True)
    for episode in range(8):
        ends_at = None if episode % 2 else int(rng.integers(3))
        obs, _ = env.reset(seed=episode)
        total = 0.0
        for num_tokens in range(env.observation_space["tokens"].shape[0] + 1):
            assert (obs["tokens"][obs["length"][0] :] == pad_id).all(), "rows must be padded on the right with pad_id."
            action = eos_id if num_tokens == ends_at else int(rng.choice(others))
            expected = obs["tokens"].copy()
            start = int(obs["length"][0]) + 1
            expected[start - 1] = action
            obs, reward, terminated, truncated, info = env.step(action)
            stop = start + info.get("num_written", 0)
            expected[start:stop] = obs["tokens"][start:stop]
            assert (obs["tokens"] == expected).all(), f"token {action} must be appended and nothing else be changed."
            assert obs["length"][0] == stop, f"the length is {obs['length'][0]} after {stop} tokens."
            assert not (terminated and truncated), "an episode is terminated or truncated, never both."
            assert not eos_terminates or terminated == (action == eos_id), (
                f"token {action}, EOS {eos_id}, gave terminated={terminated}."
            )
            total += reward
            if terminated or truncated:
                assert abs(info["score"] - total) < 1e-9, f"info says score {info['score']}, the rewards were {total}."
                break
        else:
            raise AssertionError("the episode outlasts its own row.")


def check_worlds(task: TurnTask, examples: list[Example], words: Sequence[str]) -> None:
    """Raise if what was played before in a world, or is played beside it, changes what it says.

    ``words`` are said in random order until an episode is over or for 50 turns.

    Raises:
        AssertionError: if a world that has been played, or is played in turns with another, tells another story than a
            fresh one.
    """
    rng = np.random.default_rng(0)
    played, beside = task.make_world(), task.make_world()
    for example, other in zip(examples, [*examples[1:], *examples[:1]], strict=True):
        said = [words[index] for index in rng.integers(len(words), size=_MOST_TURNS)]
        seed, name = example.meta["seed"], type(played).__name__
        story = list(_story(task.make_world(), seed, said))
        assert story[0] == example.prompt, f"the world opens with {story[0]!r}, the example says {example.prompt!r}."
        list(_story(played, other.meta["seed"], said[::-1]))
        again = list(_story(played, seed, said))
        assert story == again, (
            f"{name} of seed {seed} tells another story when it has been played before; {_difference(story, again)} "
            "reset(seed) must clear all that was, and nothing but the seed may decide."
        )
        pairs = itertools.zip_longest(
            _story(task.make_world(), seed, said), _story(beside, other.meta["seed"], said[::-1])
        )
        interleaved = [event for event, _ in pairs if event is not None]
        assert story == interleaved, (
            f"{name} of seed {seed} tells another story when another world is played in between; "
            f"{_difference(story, interleaved)} make_world must make worlds that share nothing."
        )


def _difference(story: list[Any], other: list[Any]) -> str:
    turn, (one, two) = next(
        (turn, pair) for turn, pair in enumerate(itertools.zip_longest(story, other)) if pair[0] != pair[1]
    )
    return f"in turn {turn} it says {two} and not {one}."


def legal_moves(task: TurnTask, examples: Sequence[Example]) -> frozenset[str]:
    """Return what the worlds of a task call legal moves, in episodes that are played by chance.

    Worlds without ``moves()`` call nothing so.
    """
    world, rng = task.make_world(), np.random.default_rng(0)
    if not isinstance(world, WorldWithMoves):
        return frozenset()
    legal: set[str] = set()
    for example in examples:
        opening_of(world, example.meta["seed"])
        for _ in range(_MOST_TURNS):
            moves = world.moves()
            legal.update(moves)
            reply = checked_reply(world.step(moves[int(rng.integers(len(moves)))]), world)
            if reply.terminated or reply.truncated:
                break
    return frozenset(legal)


def words_of(tokenizer: Tokenizer) -> list[str]:
    """Return the texts of single tokens, of 64 at most, and of random pairs of them."""
    ids = [i for i in range(tokenizer.vocab_size) if i not in (tokenizer.pad_id, tokenizer.eos_id)]
    rng = np.random.default_rng(0)
    singles = [tokenizer.decode([ids[index]]).strip() for index in rng.permutation(len(ids))[:64]]
    return [*singles, *(first + second for first, second in rng.choice(singles, size=(16, 2)).tolist())]


def _story(world: TextWorld, seed: int, said: Sequence[str]) -> Iterator[Any]:
    yield opening_of(world, seed)[0]
    for text in said:
        reply = checked_reply(world.step(text), world)
        yield reply.text, reply.reward, reply.terminated, reply.truncated
        if reply.terminated or reply.truncated:
            break
