"""An episode of a world, turn by turn: who said what, what each turn of the policy was paid, and the total.

    **Episode 0**: return 0.75 in 2 turns

    world   Guess a number from 1 to 9.
    policy  5<eos>                       0
    world   It is higher.
    policy  7<eos>                       +0.75
    world   That is it.

``utterances`` splits a text by whose tokens they are; a turn also ends with ``<eos>``, so that a world may reply with
nothing. Left out: two turns that were cut off by their budget with an empty reply between them, which read as one.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.tracking.strips import visible

END_OF_TURN = "<eos>"
_FIRST_TURNS, _LAST_TURNS = 12, 4
"""Turns of a long episode that a text shows, from its beginning and from its end."""
_MAX_WIDTH = 48
"""Characters of the column of texts in front of the rewards."""
_COLUMN = 56
"""Characters of a column where two episodes stand side by side."""


@dataclass(frozen=True)
class Utterance:
    """What one speaker said; ``reward`` is that of the policy's turn, None for the world."""

    is_policy: bool
    text: str
    reward: float | None = None

    @property
    def speaker(self) -> str:
        """Return the name of who speaks."""
        return "policy" if self.is_policy else "world"

    @property
    def paid(self) -> str:
        """Return the reward as it is shown: with its sign, or 0; nothing for the world."""
        return "" if self.reward is None else f"{self.reward:+.3g}" if self.reward else "0"


@dataclass(frozen=True)
class Episode:
    """A conversation from its opening to its end."""

    utterances: tuple[Utterance, ...]
    total: float
    exact: bool

    @property
    def num_turns(self) -> int:
        """Return how often the policy spoke."""
        return sum(utterance.is_policy for utterance in self.utterances)

    @property
    def outcome(self) -> str:
        """Return the total and how it was come by, in words."""
        turns = "1 turn" if self.num_turns == 1 else f"{self.num_turns} turns"
        return f"return {self.total:.3g} in {turns}{', exact' if self.exact else ''}"


def utterances(
    ids: Int[np.ndarray, " length"],
    is_action: Bool[np.ndarray, " length"],
    rewards: Float[np.ndarray, " length"],
    tokens_text: Sequence[str],
) -> tuple[Utterance, ...]:
    """Return who said what in a text without padding, prompt first; ``rewards`` stand at the token that was paid."""
    starts = [0] if len(ids) else []
    for place in range(1, len(ids)):
        turns = bool(is_action[place] != is_action[place - 1])
        ended = bool(is_action[place - 1]) and tokens_text[ids[place - 1]] == END_OF_TURN
        if turns or ended:
            starts.append(place)
    ends = [*starts[1:], len(ids)]
    return tuple(
        Utterance(
            is_policy=bool(is_action[first]),
            text="".join(tokens_text[token] for token in ids[first:last]),
            reward=float(rewards[first:last].sum()) if is_action[first] else None,
        )
        for first, last in zip(starts, ends, strict=True)
    )


def is_conversation(artefact: EvalArtefact) -> bool:
    """Return whether a world replied anywhere."""
    return bool(artefact.reply_mask.any())


def episode_of(artefact: EvalArtefact, row: int) -> Episode:
    """Return a row of an evaluation as a conversation."""
    length = int(artefact.attention_mask[row].sum())
    said = utterances(
        artefact.input_ids[row, :length],
        artefact.action_mask[row, :length],
        artefact.rewards[row, :length],
        artefact.tokens_text,
    )
    return Episode(said, float(artefact.returns[row]), bool(artefact.exact[row]))


def chosen_episodes(artefact: EvalArtefact) -> list[tuple[int, str]]:
    """Return the rows of lowest, middle and highest return, and these words; fewer where there are fewer."""
    ordered = np.argsort(artefact.returns, kind="stable")
    places = {0: "lowest return", len(ordered) - 1: "highest return", len(ordered) // 2: "middle return"}
    return [(int(ordered[place]), places[place]) for place in sorted(places) if 0 <= place < len(ordered)]


def lines_of(episode: Episode) -> list[str]:
    """Return an episode as lines of text, who speaks in front and rewards behind; a long one without its middle."""
    said = _shown(episode.utterances)
    spoken = [["..."] if one is None else printable(one.text).split("\n") for one in said]
    width = min(_MAX_WIDTH, max(len(line) for texts in spoken for line in texts)) if spoken else 0
    lines = []
    for one, texts in zip(said, spoken, strict=True):
        for number, text in enumerate(texts):
            name = one.speaker if one is not None and number == 0 else ""
            line = f"{name:<8}{text}"
            if one is not None and one.reward is not None and number == len(texts) - 1:
                line = f"{line:<{8 + width}}  {one.paid}"
            lines.append(line.rstrip())
    return lines


def episodes_markdown(episodes: Sequence[Episode]) -> str:
    """Return episodes as markdown, each in a block of code, whose fence no text in it can close."""
    parts = []
    for number, episode in enumerate(episodes):
        block = "\n".join(lines_of(episode))
        parts.append(f"**Episode {number}**: {episode.outcome}\n\n{_fenced(block)}")
    return "\n\n".join(parts)


def pairs_markdown(pairs: Sequence[tuple[str, Episode, Episode]]) -> str:
    """Return real episodes with imagined ones beside them as markdown; each pair has a title in front."""
    parts = []
    for title, *episodes in pairs:
        columns = []
        for name, episode in zip(("real", "imagined"), episodes, strict=True):
            lines = [f"{name}: {episode.outcome}", "", *lines_of(episode)]
            columns.append([line[at : at + _COLUMN] for line in lines for at in range(0, max(1, len(line)), _COLUMN)])
        rows = itertools.zip_longest(*columns, fillvalue="")
        block = "\n".join(f"{left:<{_COLUMN}}  |  {right}".rstrip() for left, right in rows)
        parts.append(f"**{title}**\n\n{_fenced(block)}")
    return "\n\n".join(parts)


def _fenced(block: str) -> str:
    """Return a block of code whose fence no text in it can close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block)), default=0))
    return f"{fence}\n{block}\n{fence}"


def printable(text: str) -> str:
    """Return the text with its lines and blanks as they are, and escapes for other characters that cannot be seen.

    A line break at the end is not shown.
    """
    return "\n".join(
        "".join(character if character == " " else visible(character) for character in line)
        for line in text.removesuffix("\n").split("\n")
    )


def _shown(said: tuple[Utterance, ...]) -> list[Utterance | None]:
    """Return what is shown of an episode; None stands for what is left out."""
    turns = [place for place, utterance in enumerate(said) if utterance.is_policy]
    if len(turns) <= _FIRST_TURNS + _LAST_TURNS + 1:
        return list(said)
    return [*said[: turns[_FIRST_TURNS]], None, *said[turns[-_LAST_TURNS] :]]
