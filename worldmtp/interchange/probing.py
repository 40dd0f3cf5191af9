"""Which order and which hidden state released heads were trained with, measured instead of guessed.

Loaded the wrong way, heads still run and decoding stays correct, as every draft is verified; they are only accepted
less. So each of the four readings, {embedding first, hidden state first} x {after the final norm, before it}, is scored
by its acceptance: with real text up to x_{t+1}, does depth 2 at position t predict the token that the trunk itself
would write next, at position t+1?

    acceptance = mean over t of [argmax p^2_t == argmax p^1_{t+1}]

The best reading counts only if it beats the next one, and the best constant guess, by ``MIN_ADVANTAGE`` and by
``NUM_STANDARD_ERRORS`` standard errors of the paired difference between rows of text. Where the final norm's gains are
all alike, the two stages are the same to the heads' own norm, and nothing can or need tell them apart but the caller.
Acceptance does not show everything: heads without a causal mask score as well.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from worldmtp.heads.sequential import SequentialHead, SequentialLayer
from worldmtp.interchange.problems import LayoutError
from worldmtp.model import MTPModel
from worldmtp.model.config import CONCAT_ORDERS, HIDDEN_STAGES
from worldmtp.model.trunk import TrunkFeatures, record_features

MIN_ROWS = 8
MIN_ADVANTAGE = 0.02
NUM_STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class SpecScore:
    """One reading of the heads: acceptance and cross-entropy (nats) against the trunk's own next token."""

    concat_order: str
    hidden_stage: str
    row_acceptance: Float[Tensor, " batch"]
    cross_entropy: float

    @property
    def acceptance(self) -> float:
        """Return the mean over rows."""
        return float(self.row_acceptance.mean())


@dataclass(frozen=True)
class SpecProbe:
    """Readings from best to worst; ``row_constant`` is the acceptance of the one token the trunk writes most."""

    scores: tuple[SpecScore, ...]
    row_constant: Float[Tensor, " batch"]

    def table(self) -> str:
        """Return one reading a line."""
        lines = [f"{'concat_order':<16} {'hidden_stage':<10} {'acceptance':>10} {'cross-entropy':>13}"]
        lines += [
            f"{score.concat_order:<16} {score.hidden_stage:<10} {score.acceptance:>10.4f} {score.cross_entropy:>13.4f}"
            for score in self.scores
        ]
        lines.append(f"{'(a constant guess)':<27} {float(self.row_constant.mean()):>10.4f}")
        return "\n".join(lines)


@torch.no_grad()
def probe_spec(model: MTPModel, input_ids: Int[Tensor, "batch time"]) -> SpecProbe:
    """Return the scores of all four readings of a model's sequential heads on whole rows of text, without padding.

    Raises:
        TypeError: heads of another family, which have no such readings.
        ValueError: too little text for a standard error.
    """
    heads = model.heads
    if not isinstance(heads, SequentialHead) or not len(heads.layers):
        raise TypeError(f"probe_spec needs sequential heads of depth 2 or more, not {model.config.head!r}.")
    batch, length = input_ids.shape
    if batch < MIN_ROWS or length < 3:
        raise ValueError(
            f"input_ids is {batch} rows of {length} tokens; the standard error is taken over rows and a depth 2 target "
            f"needs three tokens: pass at least {MIN_ROWS} rows, of some hundred tokens each."
        )
    with record_features(model.base_model, heads.feature_layers, pre_norm=True) as recording:
        model.base_model(input_ids=input_ids, use_cache=False)
    features = recording.features()
    greedy = model.logits_of(features.post_norm)[:, 1:].argmax(dim=-1)
    scores = []
    for concat_order, hidden_stage in product(CONCAT_ORDERS, HIDDEN_STAGES):
        hidden = features.post_norm if hidden_stage == "post_norm" else features.pre_norm
        assert hidden is not None
        with _read_in_order(heads, concat_order):
            # Given as both, so that the heads read it whichever they are made for.
            latent = model.head_latents(TrunkFeatures(hidden, hidden), input_ids, None, None, [2])[2]
        logits = model.logits_of(latent[:, :-1], depth=2).float()
        accepted = (logits.argmax(dim=-1) == greedy).double().mean(dim=1)
        loss = functional.cross_entropy(logits.flatten(0, 1), greedy.flatten())
        scores.append(SpecScore(concat_order, hidden_stage, accepted, float(loss)))
    scores.sort(key=lambda score: (-score.acceptance, score.cross_entropy))
    commonest = greedy.flatten().mode().values
    return SpecProbe(tuple(scores), (greedy == commonest).double().mean(dim=1))


def choose_spec(probe: SpecProbe, concat_order: str | None = None, hidden_stage: str | None = None) -> SpecScore:
    """Return the reading that is clearly best among those that agree with what is already known.

    Raises:
        LayoutError: none is; the message has the table.
    """
    candidates = [
        score
        for score in probe.scores
        if concat_order in (None, score.concat_order) and hidden_stage in (None, score.hidden_stage)
    ]
    best = candidates[0]
    rivals = {f"{rival.concat_order}, {rival.hidden_stage}": rival.row_acceptance for rival in candidates[1:2]}
    if rivals:
        rivals["a constant guess"] = probe.row_constant
    for name, row_acceptance in rivals.items():
        gap = best.row_acceptance - row_acceptance
        advantage, error = float(gap.mean()), float(gap.std()) / math.sqrt(len(gap))
        needed = max(MIN_ADVANTAGE, NUM_STANDARD_ERRORS * error)
        if advantage <= needed:
            raise LayoutError(
                f"the heads' order and stage cannot be told: {best.concat_order}, {best.hidden_stage} beats {name} by "
                f"{advantage:.4f} (standard error {error:.4f}), and more than {needed:.4f} is asked for. Pass more "
                f"text of the kind the heads were trained on, or concat_order= and hidden_stage=.\n{probe.table()}"
            )
    return best


@contextmanager
def _read_in_order(heads: SequentialHead, concat_order: str) -> Iterator[None]:
    layer = heads.set_of(2, heads.layers)
    assert isinstance(layer, SequentialLayer)
    saved = layer.concat_order
    layer.concat_order = concat_order
    try:
        yield
    finally:
        layer.concat_order = saved
