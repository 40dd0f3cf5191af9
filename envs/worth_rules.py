"""Where imagined answers may be scored.

Imagination asks by the dozen for each real answer, so it is asked only where a score costs nothing but time, and where
an answer is all there is to score: not where a world would have to reply, nor where the task may end a text by itself.
"""

from worldmtp.envs.scoring import Scorer
from worldmtp.envs.task import Task, TurnTask


def check_worth(task: Task, scorer: Scorer, eos_terminates: bool) -> None:
    """Raise if imagined answers cannot be scored, or are not to be.

    Raises:
        ValueError: a world replies, the task ends texts by itself, or a score costs money.
    """
    name = type(task).__name__
    if isinstance(task, TurnTask):
        raise ValueError(
            f"{name} has worlds that reply, and what one would reply to an imagined answer is not known, so it has no "
            "score; set imagination.completions=none, or imagine whole conversations with imagination=episodes."
        )
    if not eos_terminates:
        raise ValueError(
            f"{name} rewards tokens as they come and may end a text before EOS, which an imagined answer cannot know; "
            "set imagination.completions=none."
        )
    if scorer.is_paid:
        raise ValueError(
            f"scores of {name} cost money (paid_scorer), and imagined answers ask a dozen times for each real one; "
            "set imagination.completions=none, or paid_scorer=False if they are free after all."
        )
