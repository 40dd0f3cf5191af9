"""What a run with imagined episodes leaves behind: replies foretold beside real ones, and whole episodes side by side.

    <run>/replies/replies.npz   arrays
    <run>/replies/replies.json  their checksum, the texts of tokens, the episodes that are shown

Real conversations are laid out as texts, opening first, each reply followed by its end, which is a token of its own
with the id ``len(tokens_text)``. What was foretold of a token stands at its place. ``depth`` is f at the f-th token of
a reply, which the model foretells f tokens ahead, and 0 elsewhere. Each prediction is by a member of the ensemble that
has not trained on the conversation. NaN means "not there".

A pair is a held-out episode and an imagined one from the same opening, by the same policy.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis.artefacts import ArtefactError, load_pair, save_pair
from worldmtp.analysis.conversations import Episode, Utterance
from worldmtp.tracking.strips import StripRow, TokenStrip

REPLIES_DIRECTORY = "replies"
END_MARK = "\N{END OF PROOF}"
"""Stands for the end of a reply in a strip."""
FORMAT_VERSION = 1
_NAME = "replies"


@dataclass(frozen=True)
class EpisodePair:
    """A real episode and an imagined one from the same opening; ``rank`` says in words where the real return lies."""

    rank: str
    real: Episode
    imagined: Episode


@dataclass(frozen=True)
class ReplyArtefact:
    """Replies as foretold and as they came, and imagined whole episodes beside real ones.

    Padding has the token -1. ``rewards``, ``ended`` and what was foretold of them are of the turns in ``turn_mask``.
    ``real_scores`` and ``imagined_scores`` hold the return, the turns, and 1 where the world ended the episode.
    """

    tokens: Int[np.ndarray, "episode length"]
    depth: Int[np.ndarray, "episode length"]
    is_policy: Bool[np.ndarray, "episode length"]
    logprob: Float[np.ndarray, "episode length"]
    top1: Int[np.ndarray, "episode length"]
    top1_prob: Float[np.ndarray, "episode length"]
    turn_mask: Bool[np.ndarray, "episode turn"]
    rewards: Float[np.ndarray, "episode turn"]
    foretold_rewards: Float[np.ndarray, "episode turn"]
    ended: Bool[np.ndarray, "episode turn"]
    end_prob: Float[np.ndarray, "episode turn"]
    real_scores: Float[np.ndarray, "pair 3"]
    imagined_scores: Float[np.ndarray, "pair 3"]
    tokens_text: tuple[str, ...]
    pairs: tuple[EpisodePair, ...]

    def __post_init__(self) -> None:
        reply, spoken = self.depth > 0, self.tokens >= 0
        if self.tokens.size and self.tokens.max() > len(self.tokens_text):
            raise ValueError(f"tokens has the id {self.tokens.max()}; tokens_text has {len(self.tokens_text)} entries.")
        if not reply.any():
            raise ValueError("depth is positive nowhere: there is no reply to show.")
        if np.any(reply & (self.is_policy | ~spoken)):
            raise ValueError("depth is positive outside the replies; it counts the tokens of one reply from 1.")
        if np.any(np.isnan(self.logprob) == reply) or np.any(np.isnan(self.top1_prob) == reply):
            raise ValueError("logprob and top1_prob are known at the tokens of replies, and NaN elsewhere.")

    @property
    def max_depth(self) -> int:
        """Return the tokens of the longest reply, its end included."""
        return int(self.depth.max(initial=0))


_ARRAYS = tuple(field.name for field in fields(ReplyArtefact) if field.name not in ("tokens_text", "pairs"))


def save_replies(artefact: ReplyArtefact, run_dir: Path) -> Path:
    """Write both files of a run, each atomically, and return the path of the JSON, which is written last."""
    arrays = {name: getattr(artefact, name) for name in _ARRAYS}
    header = {"tokens_text": list(artefact.tokens_text), "pairs": [asdict(pair) for pair in artefact.pairs]}
    return save_pair(run_dir / REPLIES_DIRECTORY, _NAME, FORMAT_VERSION, arrays, header)


def load_replies(run_dir: Path) -> ReplyArtefact | None:
    """Return what ``save_replies`` wrote, or None where no episodes were imagined.

    Raises:
        ArtefactError: a file or a field is missing, damaged, or of another version.
    """
    directory = run_dir / REPLIES_DIRECTORY
    if not directory.is_dir():
        return None
    arrays, header = load_pair(directory, _NAME, FORMAT_VERSION, _ARRAYS, ("tokens_text", "pairs"))
    try:
        pairs = tuple(_pair(pair) for pair in header["pairs"])
        return ReplyArtefact(**arrays, tokens_text=tuple(header["tokens_text"]), pairs=pairs)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{directory} does not hold imagined episodes: {error!r}") from error


def reply_strip(artefact: ReplyArtefact, row: int) -> TokenStrip:
    """Return a real conversation with what was foretold of each token of its replies."""
    texts = (*artefact.tokens_text, END_MARK)
    length = int((artefact.tokens[row] >= 0).sum())
    reply = artefact.depth[row, :length] > 0
    acted = np.flatnonzero(artefact.is_policy[row, :length])
    opening = int(acted[0]) if len(acted) else length
    return TokenStrip(
        tokens=tuple(texts[token] for token in artefact.tokens[row, :length]),
        prompt_length=opening,
        rows=(
            StripRow(
                "foretold",
                tuple(texts[artefact.top1[row, place]] if is_reply else None for place, is_reply in enumerate(reply)),
                tuple(
                    min(1.0, float(artefact.top1_prob[row, place])) if is_reply else 0.0
                    for place, is_reply in enumerate(reply)
                ),
            ),
        ),
        replies=frozenset(np.flatnonzero(reply).tolist()),
    )


def _pair(told: Mapping[str, Any]) -> EpisodePair:
    return EpisodePair(told["rank"], _episode(told["real"]), _episode(told["imagined"]))


def _episode(told: Mapping[str, Any]) -> Episode:
    return Episode(tuple(Utterance(**one) for one in told["utterances"]), told["total"], told["exact"])
