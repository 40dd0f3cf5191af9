"""A text of an artefact as a scene of the Imagination tab: its strips, with the likeliest tokens behind each cell."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from worldmtp.analysis.artefacts import EvalArtefact, imagined_strip, token_strip
from worldmtp.tracking.scenes import Guess, Scene, SceneRow


@dataclass(frozen=True)
class TopTokens:
    """The likeliest tokens of what was said, most likely first, at the places of an artefact's arrays."""

    predicted_ids: Int[np.ndarray, "batch length depth top"]
    predicted_probs: Float[np.ndarray, "batch length depth top"]
    imagined_ids: Int[np.ndarray, "batch length horizon top"]
    imagined_probs: Float[np.ndarray, "batch length horizon top"]


def scene_of(artefact: EvalArtefact, tops: TopTokens, row: int, *, shows_returns: bool = True) -> Scene:
    """Return sequence ``row``: what its token strips show, and what is behind them.

    ``shows_returns`` is False where the imagined returns mean nothing, since nothing has taught the reward head.
    """
    strip = token_strip(artefact, row)
    length = len(strip.tokens)
    predicted = tuple(
        SceneRow(
            said.label, tuple(_predicted(artefact, tops, row, place, k, said.tokens[place]) for place in range(length))
        )
        for k, said in enumerate(strip.rows)
    )
    imagined = []
    for said in imagined_strip(artefact, row).rows:
        root = next(place for place, token in enumerate(said.tokens) if token is not None) - 1
        steps = [place - root - 1 for place in range(length)]
        guesses = (
            None
            if token is None
            else Guess(_top(artefact, tops.imagined_ids[row, root, h], tops.imagined_probs[row, root, h]))
            for token, h in zip(said.tokens, steps, strict=True)
        )
        imagined.append(SceneRow(said.label, tuple(guesses), root))
    imagined_return = _known(artefact.imagined_return[row, :length]) if shows_returns else (None,) * length
    return Scene(
        tokens=strip.tokens,
        prompt_length=strip.prompt_length,
        replies=tuple(sorted(strip.replies)),
        total=float(artefact.returns[row]),
        exact=bool(artefact.exact[row]),
        predicted=predicted,
        imagined=tuple(imagined),
        imagined_return=imagined_return,
        realized_return=_known(artefact.realized_return[row, :length]),
    )


def _predicted(artefact: EvalArtefact, tops: TopTokens, row: int, place: int, k: int, said: str | None) -> Guess | None:
    if said is None:
        return None
    logprob = artefact.head_logprob[row, place, k]
    return Guess(
        _top(artefact, tops.predicted_ids[row, place, k], tops.predicted_probs[row, place, k]),
        realized=float(np.exp(logprob)),
        accept=float(np.exp(min(0.0, logprob - artefact.chain_logprob[row, place]))),
    )


def _top(
    artefact: EvalArtefact, ids: Int[np.ndarray, " top"], probs: Float[np.ndarray, " top"]
) -> tuple[tuple[str, float], ...]:
    return tuple((artefact.tokens_text[token], float(p)) for token, p in zip(ids, probs, strict=True))


def _known(values: Float[np.ndarray, " length"]) -> tuple[float | None, ...]:
    return tuple(float(value) if np.isfinite(value) else None for value in values)
