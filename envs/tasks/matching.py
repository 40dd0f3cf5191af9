"""How close a text is to an answer."""

from typing import Literal

from worldmtp.envs.task import Score

Reward = Literal["score", "exact"]
REWARDS = ("score", "exact")


def check_reward(reward: str) -> None:
    """Nothing.

    Raises:
        ValueError: if there is no such reward.
    """
    if reward not in REWARDS:
        raise ValueError(f"reward={reward!r} is unknown; expected 'score' (partial credit) or 'exact' (1 or 0).")


def position_match(answer: str, text: str) -> float:
    """Share of positions with the right character, of the longer of the two: padding an answer is never free."""
    length = max(len(answer), len(text))
    return sum(a == b for a, b in zip(answer, text, strict=False)) / length if length else 1.0


def match_score(answer: str, text: str, reward: str) -> Score:
    """Score of a text against the only right answer; its credit is partial or all-or-nothing."""
    match = position_match(answer, text)
    exact = text == answer
    return Score(value=match if reward == "score" else float(exact), components={"position_match": match}, exact=exact)
