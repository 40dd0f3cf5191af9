"""Wall clock of scoring under a time limit, by the number of scoring processes.

    python benchmarks/scoring_workers.py
    python benchmarks/scoring_workers.py --seconds 0.5 --answers 32 --workers 1 8

Each answer takes its scorer ``--seconds`` of waiting, as a request or a sandbox does; the processes are started, and
have answered once, before the clock starts. With 4 processes, 16 answers of 0.1 s take 0.4 s and what passing them
around costs. Medians of rounds.
"""

import argparse
import statistics
import time

import numpy as np
from jaxtyping import Int64

from worldmtp.envs import Example, Score, Scorer


class Waiting:
    """A task whose scorer waits for so long, and pays nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """One question."""
        return Example("a=", "a")

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """A constant, after a while."""
        time.sleep(self.seconds)
        return Score(0.0)


def median_seconds(num_workers: int, num_answers: int, seconds: float, num_rounds: int) -> float:
    """Of scoring all answers at once."""
    no_ids = np.zeros(0, dtype=np.int64)
    answers = [(Example("a=", "a"), "a", no_ids)] * num_answers
    scorer = Scorer(Waiting(seconds), timeout_seconds=60.0, on_error="raise", num_scorers=num_workers)
    scorer.score_batch(answers)
    rounds = []
    for _ in range(num_rounds):
        start = time.perf_counter()
        scorer.score_batch(answers)
        rounds.append(time.perf_counter() - start)
    scorer.close()
    return statistics.median(rounds)


def main() -> None:
    """Print one line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.1, help="what one answer takes")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for num_workers in args.workers:
        taken = median_seconds(num_workers, args.answers, args.seconds, args.rounds)
        print(f"{num_workers} scoring processes: {args.answers} answers of {args.seconds:g} s in {taken:.3f} s")


if __name__ == "__main__":
    main()
