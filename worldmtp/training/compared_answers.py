"""Held-out prompts of a checkpoint answered in several ways, and one way explained plan by plan."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from worldmtp.agents.answers import Answering, Answers, ExplainedAnswers
from worldmtp.agents.search_config import ActingSearch
from worldmtp.model import MTPModel
from worldmtp.random import stream_seed
from worldmtp.training.config import EnvConfig
from worldmtp.training.evaluation import heldout_rows
from worldmtp.training.saved_replies import run_replies


def compare_answers(
    model: MTPModel,
    env: EnvConfig,
    num_prompts: int,
    temperature: float = 1.0,
    seed: int = 0,
    searches: Sequence[ActingSearch] = (),
    best_of: Sequence[int] = (),
    beams: Sequence[int] = (),
    run_dir: Path | None = None,
) -> Iterator[Answers]:
    """Answer the prompts of ``evaluate_model`` in several ways.

    Greedily, by a draw, by searches, by beam searches that keep so many texts, by the best of so many draws.

    They come one by one, as the later ones take a while. A search through ``replies`` asks the model of them that the
    run in ``run_dir`` has learnt.

    Raises:
        TypeError: a search over heads that are blind to actions.
        ValueError: as ``evaluate_model``, or a search looks further ahead than the heads or has nobody to ask for
            replies, or a beam where worlds reply.
    """
    answering = _answering(model, env, num_prompts, temperature, seed, searches, run_dir)
    for number in beams:
        answering.check_beam(number)
    yield answering.greedy()
    yield answering.sampled()
    for how in searches:
        yield answering.searched(how)
    for number in beams:
        yield answering.beam(number)
    for number in best_of:
        yield from answering.best_of(number)


def explain_answers(
    model: MTPModel,
    env: EnvConfig,
    num_prompts: int,
    how: ActingSearch,
    temperature: float = 1.0,
    seed: int = 0,
    run_dir: Path | None = None,
) -> ExplainedAnswers:
    """Answer the first of those prompts by a search, and keep every plan.

    Raises:
        TypeError, ValueError: as ``compare_answers``.
    """
    return _answering(model, env, num_prompts, temperature, seed, [how], run_dir).explained(how)


def _answering(
    model: MTPModel,
    env: EnvConfig,
    num_prompts: int,
    temperature: float,
    seed: int,
    searches: Sequence[ActingSearch],
    run_dir: Path | None,
) -> Answering:
    """Return who answers, if it can search so."""
    rows, examples = heldout_rows(model, env, num_prompts, seed)
    model.limit_tokens(rows.tokenizer.vocab_size)
    replies = None
    if run_dir is not None and any(how.dynamics == "replies" for how in searches):
        replies = run_replies(run_dir, rows, model)
    answering = Answering(model, rows, examples, temperature, stream_seed(seed, "evaluation"), replies)
    for how in searches:
        answering.check_search(how)
    return answering
