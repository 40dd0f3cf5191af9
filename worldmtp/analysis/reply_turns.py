"""What the model of replies gave to the world's answers, turn by turn: in real conversations and in held-out ones.

    <run>/replies/turns.npz

An answer is a reply, its end included, and whether the conversation ends with it. The newest conversations are foretold
by the member of the ensemble that has not trained on them; the held-out episodes, which no member has seen, by the
mixture of all, which is what imagined episodes are drawn from. NaN, and a count of 0, mean "no such turn".
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis.artefacts import opened_arrays, write_arrays
from worldmtp.analysis.replies import REPLIES_DIRECTORY

_FILE = "turns.npz"


@dataclass(frozen=True)
class AnsweredTurns:
    """Log-probabilities of answers, and how often the world was asked just this and answered just so.

    ``asked`` counts the conversations of the same batch with the same text up to the end of the turn, ``alike`` those
    of them with the same answer. Conversations of a ``group`` began as copies of one another, what is hidden included.
    """

    group: Int[np.ndarray, " episode"]
    logprob: Float[np.ndarray, "episode turn"]
    asked: Int[np.ndarray, "episode turn"]
    alike: Int[np.ndarray, "episode turn"]

    def __post_init__(self) -> None:
        if np.any((self.asked > 0) != self.there) or np.any((self.alike > self.asked) | (self.alike < self.there)):
            raise ValueError("asked and alike count each turn of which there is a log-probability, itself included.")
        if np.any(self.logprob[self.there] > 1e-5):
            raise ValueError(f"logprob is {np.nanmax(self.logprob)} at most; expected logarithms of probabilities.")

    @property
    def there(self) -> Bool[np.ndarray, "episode turn"]:
        """Return which turns there are."""
        there: Bool[np.ndarray, "episode turn"] = np.isfinite(self.logprob)
        return there


@dataclass(frozen=True)
class ReplyProbes:
    """Log-probabilities of replies at the places of the newest conversations' turns, by the same member; NaN for none.

    ``own`` is of the reply that came, ``before`` and ``after`` of those of the neighbouring turns and ``other`` of a
    turn further away, all where they differ from it. ``open_loop`` is of the reply that came where the model has said
    all earlier ones itself; -inf where it then held it impossible.
    """

    own: Float[np.ndarray, "episode turn"]
    before: Float[np.ndarray, "episode turn"]
    after: Float[np.ndarray, "episode turn"]
    other: Float[np.ndarray, "episode turn"]
    open_loop: Float[np.ndarray, "episode turn"]


@dataclass(frozen=True)
class ReplyTurns:
    """Answers of the newest conversations and of held-out episodes, the latter beside their imagined counterparts.

    ``entropy`` is that of the prediction before the world answered, ``num_tokens`` the length of the reply, its end
    included. A held-out episode is not ``imaginable`` if it has more turns than imagined ones may have, or ends in a
    reply that was cut, whose probability is not known. ``members`` holds what each gives to the held-out answers.
    """

    newest: AnsweredTurns
    probes: ReplyProbes
    entropy: Float[np.ndarray, "episode turn"]
    num_tokens: Int[np.ndarray, "episode turn"]
    heldout: AnsweredTurns
    members: Float[np.ndarray, "pair heldout_turn member"]
    imaginable: Bool[np.ndarray, " pair"]
    real_returns: Float[np.ndarray, " pair"]
    imagined_returns: Float[np.ndarray, " pair"]

    def __post_init__(self) -> None:
        shapes = {self.entropy.shape, self.num_tokens.shape, self.newest.logprob.shape, self.probes.own.shape}
        pairs = {len(self.heldout.logprob), len(self.imaginable), len(self.real_returns), len(self.imagined_returns)}
        if len(shapes) > 1 or len(pairs) > 1:
            raise ValueError(f"turns of the shapes {shapes} and {pairs} held-out episodes; expected one of each.")


_PARTS: dict[str, type[AnsweredTurns | ReplyProbes]] = {
    "newest": AnsweredTurns,
    "heldout": AnsweredTurns,
    "probes": ReplyProbes,
}


def save_turns(turns: ReplyTurns, run_dir: Path) -> None:
    """Write the turns of a run, whole or not at all."""
    arrays = {name: value for name, value in vars(turns).items() if name not in _PARTS}
    for part in _PARTS:
        arrays |= {f"{part}_{name}": value for name, value in vars(getattr(turns, part)).items()}
    write_arrays(run_dir / REPLIES_DIRECTORY / _FILE, arrays)


def load_turns(run_dir: Path) -> ReplyTurns | None:
    """Return what ``save_turns`` wrote, or None where nothing was written.

    Raises:
        ArtefactError: the file is damaged, or of another version.
    """
    path = run_dir / REPLIES_DIRECTORY / _FILE
    if not path.is_file():
        return None
    with opened_arrays(path) as archive:
        values: dict[str, Any] = {
            name: part(**{field.name: archive[f"{name}_{field.name}"] for field in fields(part)})
            for name, part in _PARTS.items()
        }
        plain = [field.name for field in fields(ReplyTurns) if field.name not in _PARTS]
        return ReplyTurns(**(values | {name: archive[name] for name in plain}))
