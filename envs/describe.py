"""What there is to know of an environment before it is made in earnest: its kind, its subject and its sizes."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import gymnasium

from worldmtp.envs.making import find_spec, make_text_vec
from worldmtp.envs.seeded_task import SeededTask
from worldmtp.envs.splits import draw_examples
from worldmtp.envs.task import DenseTask, Task, TurnTask
from worldmtp.envs.tasks.function import FunctionTask
from worldmtp.envs.tasks.reasoning_gym import ReasoningGymTask
from worldmtp.envs.tokenizer import Tokenizer


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts of a small draw."""

    median: float
    max: int


@dataclass(frozen=True)
class Description:
    """An environment; ``answer`` is None where the task has no answers to show, EOS is not counted."""

    id: str
    kind: str
    what: str
    prompt: Lengths
    answer: Lengths | None
    max_prompt: int
    max_new: int
    vocab_size: int
    universe_size: int | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def text_env_ids() -> list[str]:
    """Registered ids that this package makes, in alphabetical order."""
    ours = ("worldmtp.envs:TextGenEnv", "worldmtp.envs:TextGenVectorEnv")
    return sorted(
        spec.id for spec in gymnasium.registry.values() if {spec.entry_point, spec.vector_entry_point} & set(ours)
    )


def describe(env_id: str, num_examples: int = 24, seed: int = 0, **kwargs: Any) -> Description:
    """The description of an environment, measured on training examples.

    Args:
        env_id: a gymnasium id, or ``<module>:<id>``.
        num_examples: to measure on; a generator that is slow is asked for no more.
        seed: of the draw.
        **kwargs: what the environment is made with.

    Raises:
        ValueError: if the environment cannot be made, or its split not be filled.
    """
    envs = make_text_vec(env_id, 1, **kwargs)
    problem, task, tokenizer = envs.problem, envs.task, envs.tokenizer
    examples = draw_examples(
        task, "train", num_examples, seed, purpose="evaluation", heldout_fraction=problem.heldout_fraction
    )
    answers = [example.answer for example in examples if example.answer is not None]
    return Description(
        id=find_spec(env_id).id,
        kind=kind_of(task),
        what=subject_of(task),
        prompt=_lengths([example.prompt for example in examples], tokenizer),
        answer=_lengths(answers, tokenizer) if len(answers) == len(examples) else None,
        max_prompt=problem.max_prompt,
        max_new=problem.max_new,
        vocab_size=tokenizer.vocab_size,
        universe_size=getattr(task, "universe_size", None),
    )


def kind_of(task: Task) -> str:
    """The kind: "turns" where worlds reply, "dense" where tokens are rewarded as they come, else "answer"."""
    if isinstance(task, TurnTask):
        return "turns"
    return "dense" if isinstance(task, DenseTask) else "answer"


def subject_of(task: Task) -> str:
    """The first line of the docstring of what the task is made of: its world and its kwargs, its function or class."""
    if isinstance(task, ReasoningGymTask):
        return f"{task.dataset_name} of reasoning-gym."
    source: Any = type(task)
    made_with: Mapping[str, Any] = {}
    if isinstance(task, TurnTask):
        source = type(task.make_world())
        made_with = getattr(task, "world_kwargs", {})
    elif isinstance(task, SeededTask):
        source = type(task.env.unwrapped)
    elif isinstance(task, FunctionTask):
        source = task.sample_function
    while isinstance(source, partial):
        source = source.func
    subject = (inspect.getdoc(source) or "").strip().partition("\n")[0].replace("``", "")
    return " ".join([subject, *(f"{name}={value}" for name, value in made_with.items())]).strip()


def _lengths(texts: list[str], tokenizer: Tokenizer) -> Lengths:
    counts = [len(tokenizer.encode(text)) for text in texts]
    return Lengths(median(counts), max(counts))
