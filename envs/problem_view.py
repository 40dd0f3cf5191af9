"""What every environment of text tells of its problem, single or vector, ours, a user's or wrapped."""

from worldmtp.envs.problem import TextProblem
from worldmtp.envs.scoring import Scorer
from worldmtp.envs.task import Example, Task
from worldmtp.envs.tokenizer import Tokenizer


class ProblemView:
    """Views of ``problem``, for classes that have one."""

    problem: TextProblem

    @property
    def task(self) -> Task:
        """What is asked and scored."""
        return self.problem.task

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        return self.problem.tokenizer

    @property
    def max_new(self) -> int:
        """Tokens an answer may take, EOS included: no episode has more steps."""
        return self.problem.max_steps

    @property
    def scorer(self) -> Scorer:
        """With ``counters`` of scored answers, errors, time-outs and seconds; what a user's env pays is not counted."""
        return self.problem.scorer

    def examples(
        self, split: str, num_examples: int, seed: int, purpose: str = "pool", fewer: bool = False
    ) -> list[Example]:
        """Distinct examples of a split, by the stream of a purpose; more of them begin with the fewer."""
        return self.problem.examples(split, num_examples, seed, purpose, fewer)

    def overlap(self) -> float:
        """Share of the held-out pool's questions that the training pool has."""
        return self.problem.overlap()
