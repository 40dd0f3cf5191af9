"""What a model says of held-out texts of a source whose law is known, beside that law: a ``worldmtp.analysis.truth``.

The answers of a task with a ``law`` (``KnownLaw``) are texts of its source. They are read with all depths at
temperature 1; what a depth gives to the end token or padding is lost to it. A ridge regression reads the beliefs off
the trunk's states, fitted on one half of the texts and measured on the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from worldmtp.analysis import EvalArtefact
from worldmtp.analysis.truth import Truth, save_truth, truth_of
from worldmtp.analysis.value_truth import ExactValues, save_values
from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.envs import Example, Tokenizer
from worldmtp.envs.task import Task
from worldmtp.envs.tasks.exact_world import KnownLaw
from worldmtp.exact import GoalTexts
from worldmtp.model import MTPModel
from worldmtp.model.precision import full_precision
from worldmtp.studies.probes import linear_readout
from worldmtp.tracking import MetricWriter
from worldmtp.training.exact_values import MAX_ANSWERS, exact_state_values

_NUM_VALUED = 64
"""Held-out answers whose states are valued by enumeration."""
_MAX_NUMBERS = 20_000_000
"""Numbers held at once: texts x paths x states of an enumeration, or texts x roots x vocabulary."""


@dataclass(frozen=True)
class ExactTexts:
    """Texts of a source as a model reads them, and their law at each root: the prefix's end, and each answer token.

    ``exact`` and ``marginals`` are NaN where a depth reaches beyond the text.
    """

    input_ids: Int[Tensor, "text time"]
    roots: Int[Tensor, " root"]
    symbol_ids: Int[Tensor, " symbol"]
    last_token: Float[Tensor, "text root symbol"]
    beliefs: Float[Tensor, "text root state"]
    exact: Float[Tensor, "text root depth symbol"]
    marginals: Float[Tensor, "text root depth symbol"]
    noise: Float[Tensor, "text root depth"]
    structural: Float[Tensor, "text root depth"]


class ExactTruth:
    """The law of a run's held-out texts, reckoned once; ``write`` sets a model beside it.

    ``notes`` say what cannot be measured, and why.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        examples: Sequence[Example],
        num_depths: int,
        temperature: float = 1.0,
        gamma: float = 1.0,
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self._texts: ExactTexts | None = None
        self._task, self._tokenizer, self._examples = task, tokenizer, examples
        self._temperature, self._gamma = temperature, gamma
        if not isinstance(task, KnownLaw):
            return
        shown = [example for example in examples if example.answer]
        depth = _affordable_depth(task.law, num_depths)
        if depth < num_depths:
            self.notes += (
                f"the truth is reckoned to depth {depth} of {num_depths}: deeper ones leave the answer, or have too "
                "many paths to enumerate.",
            )
        if not _is_written_apart(tokenizer, [*task.law.symbols, *map(_text, shown)]):
            self.notes = ("the truth is not shown: the tokenizer does not write each token of the source as one id.",)
        elif len(shown) < 4:
            self.notes = (f"the truth is not shown: {len(shown)} held-out texts are too few.",)
        else:
            self._texts = exact_texts(task, tokenizer, shown, depth)

    def write(self, model: MTPModel, run_dir: Path, name: str, writer: MetricWriter, step: int) -> None:
        """Leave what a model says beside the truth in the run directory and in the log, where a law is known."""
        if self._texts is None:
            return
        found = measured_truth(model, self._texts)
        save_truth(found, run_dir, name)
        writer.scalars(found.scalars(), step)

    def write_values(
        self, model: MTPModel, artefact: EvalArtefact, run_dir: Path, name: str, writer: MetricWriter, step: int
    ) -> None:
        """Leave the exact values of the policy's states beside what was imagined, where answers can be enumerated."""
        task = self._task
        if not isinstance(task, KnownLaw) or task.law.source.num_symbols**task.law.answer_length > MAX_ANSWERS:
            return

        def score(row: int, ids: Int64[np.ndarray, " tokens"]) -> float:
            return self._task.score(self._examples[row], self._tokenizer.decode(ids), ids).value

        room = task.law.answer_length + 1
        how = (self._tokenizer.eos_id, room, self._temperature, self._gamma, _NUM_VALUED)
        values, missing = exact_state_values(model, artefact, score, *how)
        found = ExactValues(values, missing)
        save_values(found, run_dir, name)
        writer.scalars(found.scalars(artefact), step)


def exact_texts(task: KnownLaw, tokenizer: Tokenizer, examples: Sequence[Example], depth: int) -> ExactTexts:
    """Return the texts of examples with an answer, and their law to ``depth``."""
    law = task.law
    parts = [task.parts(example.prompt) for example in examples]
    tokens = law.tokens_of([prefix + str(example.answer) for (_, prefix), example in zip(parts, examples, strict=True)])
    goals = law.tokens_of([goal for goal, _ in parts])[:, 0]
    beliefs = law.source.beliefs(tokens)[:, law.prefix_length : -1]
    columns = [
        _law_at(law, beliefs[:, root], goals, law.answer_length - root, depth) for root in range(beliefs.shape[1])
    ]
    marginals, noise, structural = (torch.stack(found, dim=1) for found in zip(*columns, strict=True))
    exact = torch.full_like(marginals, float("nan"))
    for k in range(depth):
        exact[:, : exact.shape[1] - k, k] = marginals[:, k:, 0]
    ids = torch.tensor([tokenizer.encode(_text(example)) for example in examples])
    first = ids.shape[1] - law.answer_length - 1
    return ExactTexts(
        input_ids=ids,
        roots=torch.arange(first, first + law.answer_length),
        symbol_ids=torch.tensor([tokenizer.encode(symbol)[0] for symbol in law.symbols]),
        last_token=torch.nn.functional.one_hot(tokens[:, law.prefix_length - 1 : -1], law.source.num_symbols).double(),
        beliefs=beliefs,
        exact=exact,
        marginals=marginals,
        noise=noise,
        structural=structural,
    )


@torch.no_grad()
def measured_truth(model: MTPModel, texts: ExactTexts) -> Truth:
    """Return what a model says of the texts, beside their law."""
    predicted, states = [], []
    depth, vocab = texts.exact.shape[2], model.num_tokens
    with evaluation_mode(model):
        for rows in _chunks(len(texts.input_ids), len(texts.roots) * vocab):
            ids = texts.input_ids[rows].to(model.device)
            latents = model.latents(ids, torch.ones_like(ids), depths=depth)
            at = [latent[:, texts.roots.to(model.device)] for latent in latents]
            said = [model.logits_of(one, k).double().softmax(dim=-1) for k, one in enumerate(at, start=1)]
            kept = [one[..., texts.symbol_ids.to(model.device)].cpu() for one in said]
            predicted.append(torch.stack(kept, dim=2))
            states.append(full_precision(at[0]).double().cpu())
    errors, spread = belief_errors((torch.cat(states), texts.last_token), texts.beliefs)
    return truth_of(
        torch.cat(predicted).numpy(),
        texts.exact.numpy(),
        texts.marginals.numpy(),
        texts.noise.numpy(),
        texts.structural.numpy(),
        model.heads.kind == "action_conditional",
        errors.numpy(),
        spread.numpy(),
    )


def belief_errors(
    readers: Sequence[Float[Tensor, "text root _"]], beliefs: Float[Tensor, "text root state"]
) -> tuple[Float[Tensor, "test reader"], Float[Tensor, " test"]]:
    """Return summed squares, by text of the second half: what each reader misses of the beliefs, and their spread.

    A reader is what a ridge regression, fitted on the first half, reads from.
    """
    half = len(beliefs) // 2
    known, asked = beliefs[:half].flatten(0, 1), beliefs[half:]
    missed = []
    for states in readers:
        read = linear_readout(states[:half].flatten(0, 1), known, states[half:].flatten(0, 1))
        missed.append((read.unflatten(0, asked.shape[:2]) - asked).square().sum(dim=(1, 2)))
    return torch.stack(missed, dim=1), (asked - asked.mean(dim=(0, 1))).square().sum(dim=(1, 2))


def _law_at(
    law: GoalTexts, beliefs: Float[Tensor, "text state"], goals: Int[Tensor, " text"], num_left: int, depth: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return marginals, noise and structural gap of one root of all texts, NaN behind the end."""
    reach = min(depth, num_left)
    size = law.source.num_symbols**reach * law.source.num_states
    splits = [law.true_split(beliefs[rows], goals[rows], num_left, reach) for rows in _chunks(len(beliefs), size)]
    marginals = law.marginals(beliefs, goals, num_left, reach)
    parts = (marginals, torch.cat([one.noise for one in splits]), torch.cat([one.structural for one in splits]))
    found = []
    for part in parts:
        whole = torch.full((len(beliefs), depth, *part.shape[2:]), float("nan"), dtype=part.dtype)
        whole[:, :reach] = part
        found.append(whole)
    return found[0], found[1], found[2]


def _text(example: Example) -> str:
    return example.prompt + str(example.answer)


def _is_written_apart(tokenizer: Tokenizer, texts: Sequence[str]) -> bool:
    """Return whether each character of the texts is a token of its own, merged with none beside it."""
    return all(
        len(ids := tokenizer.encode(text)) == len(text) and ids == [tokenizer.encode(one)[0] for one in text]
        for text in texts
    )


def _affordable_depth(law: GoalTexts, num_depths: int) -> int:
    """Return how deep a text's paths can be enumerated, at most so deep and no deeper than answers are long."""
    most = min(num_depths, law.answer_length)
    while most > 1 and law.source.num_symbols**most * law.source.num_states > _MAX_NUMBERS:
        most -= 1
    return most


def _chunks(num_rows: int, numbers_a_row: int) -> Iterator[slice]:
    size = max(1, _MAX_NUMBERS // numbers_a_row)
    return (slice(start, start + size) for start in range(0, num_rows, size))
