"""What two runs can be compared in, by their configs: the task, the seed, and the weights that the trunks began with.

Left out is what a config does not say: two tasks of one name in two versions, or a checkpoint that was written again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from worldmtp.analysis.run_files import known_values

Values = Mapping[str, str]

_TASK = ("env.id", "env.kwargs", "env.wrappers")
_FRESH_TRUNK = ("seed", "model.architecture", "model.config", *_TASK)
"""What decides the weights of a trunk that no file holds; the task has a vocabulary and a length of its texts."""
_NONE = "None"
_UNSET = "not set"
_EMPTY = "{}"


@dataclass(frozen=True)
class Comparable:
    """What the configs of two runs say of a comparison.

    Attributes:
        notes: what is comparable and what is not, a sentence or two each.
        other_heads: why the head of a number is another head in the other run; None where both trunks began with the
            same weights.
    """

    notes: tuple[str, ...]
    other_heads: str | None


def comparable(first: str | None, second: str | None) -> Comparable:
    """Return what two runs can be compared in; ``first`` and ``second`` are their configs, YAML.

    None, or a config that is damaged, is one that nothing is known of.
    """
    one, other = known_values(first), known_values(second)
    if not one or not other:
        return Comparable(
            ("A config is missing or damaged, so it is not known whether the runs have one task and one seed.",),
            "a config is missing or damaged",
        )
    return Comparable((*_task_notes(one, other), *_seed_notes(one, other)), _other_heads(one, other))


def why_no_prompts(first: str | None, second: str | None) -> str:
    """Return why two runs have not answered the same prompts, and what to do, to end an error message with."""
    one, other = known_values(first), known_values(second)
    if one and other and one.get("env.id") != other.get("env.id"):
        return (
            f"they are of different tasks, env.id={_value(one, 'env.id')} and {_value(other, 'env.id')}, so that no "
            "answer of one has a counterpart; compare runs of one task."
        )
    if one and other and one.get("seed") != other.get("seed"):
        return (
            f"they have different seeds, {_value(one, 'seed')} and {_value(other, 'seed')}, which draw different "
            "held-out prompts; compare runs of one seed."
        )
    return "compare runs of one task with the same seed and eval.num_prompts, so that they answer the same prompts."


def _task_notes(one: Values, other: Values) -> list[str]:
    if one.get("env.id") != other.get("env.id"):
        return [
            f"The runs are of different tasks, {_value(one, 'env.id')} and {_value(other, 'env.id')}. Prompts of the "
            "same text are paired, though the tasks may ask and pay for different things: exact match, return and "
            "length compare the tasks as much as the runs, and acceptance, agreement and attention are of different "
            "texts."
        ]
    if changed := _changed(one, other, _TASK):
        return [
            f"The runs have one task, {_value(one, 'env.id')}, with other settings ({', '.join(changed)}): where these "
            "change what is asked, allowed or paid, scores of the two are not on one scale."
        ]
    return []


def _seed_notes(one: Values, other: Values) -> list[str]:
    seeds = _value(one, "seed"), _value(other, "seed")
    sweep = "sweep the same seeds in both and compare the sweeps, as worldmtp analyze SWEEP_A SWEEP_B does"
    if seeds[0] != seeds[1]:
        return [
            f"The runs have different seeds, {seeds[0]} and {seeds[1]}, which draw different prompts, demonstrations "
            "and whatever weights no file holds. Only prompts that both happened to answer are paired; the runs are "
            "not, so a difference may be one of the seeds, for which the intervals do not allow. To learn what a "
            f"setting does, {sweep}."
        ]
    # A task draws its prompts by the seed, and another task, or one that is set otherwise, draws others.
    how = "they answered the same prompts and are paired by them"
    if _changed(one, other, _TASK):
        how = "the prompts that both answered are paired, of which a task that is not the same may have drawn others"
    return [
        f"The runs have one seed, {seeds[0]}: {how}. The intervals "
        f"are over prompts and hold for these two runs alone; to learn what a setting does over seeds, {sweep}."
    ]


def _other_heads(one: Values, other: Values) -> str | None:
    """Return what makes the trunks begin with other weights: the file they come from, or what they are drawn by."""
    for file in ("sft.load", "model.path"):  # what is loaded after a warm start replaces the trunk, whatever it was
        given = [values.get(file, _NONE) for values in (one, other)]
        if given[0] != given[1]:
            return f"{file} is {_value(one, file)} in the first and {_value(other, file)} in the second"
        if given[0] != _NONE:
            return None
    changed = _changed(one, other, _FRESH_TRUNK)
    return f"{', '.join(changed)} {'differs' if len(changed) == 1 else 'differ'}" if changed else None


def _changed(one: Values, other: Values, keys: Iterable[str]) -> list[str]:
    """Return the keys, and those below them, whose values are not the same; an empty mapping is no value."""
    wanted = tuple(keys)
    below = tuple(f"{name}." for name in wanted)
    return [
        key
        for key in dict.fromkeys([*one, *other])
        if (key in wanted or key.startswith(below)) and one.get(key, _EMPTY) != other.get(key, _EMPTY)
    ]


def _value(values: Values, key: str) -> str:
    value = values.get(key, _NONE)
    return _UNSET if value == _NONE else value
