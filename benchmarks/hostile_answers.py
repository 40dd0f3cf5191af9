"""What hostile answers to reasoning-gym's evaluating datasets cost, and whether any of them is paid.

    python benchmarks/hostile_answers.py --texts 1000

Texts come from a grammar of names, subscripts, calls, towers of powers, comprehensions, huge numbers and deep brackets.
A row a dataset: the worst and the median time of scoring one, the most that one earned, and the growth of the process.
"""

import argparse
import resource
import time

import numpy as np

from worldmtp.envs import make_task
from worldmtp.envs.tasks.evaluated_answers import EXPRESSION, LITERAL

_ATOMS = [
    *("1", "9", "24", "0", "x", "X", "y", "C", "E", "pi", "entry", "oracle_answer", "__import__", "1e9", ".5", "None"),
    *("9" * 40, "9" * 4000, "1_000", "0x9", "'a'", "self", "True", "1j", "nan", "inf", "zoo", "entry['metadata']"),
]
_OPERATORS = ["**", "**", "*", "/", "+", "-", "//", "%", "<<", ","]
_FUNCTIONS = ["exp", "exp", "sin", "log", "sqrt", "factorial", "eval", "S", "range", "gamma"]


def hostile(rng: np.random.Generator, depth: int = 6) -> str:
    """A random text of the grammar."""
    if depth == 0 or rng.random() < 0.15:
        return str(rng.choice(_ATOMS))
    part = hostile(rng, depth - 1)
    match int(rng.integers(9)):
        case 0 | 1 | 2:
            return f"{part}{rng.choice(_OPERATORS)}{hostile(rng, depth - 1)}"
        case 3 | 4:
            return f"{rng.choice(_FUNCTIONS)}({part})"
        case 5:
            return f"({part})**({hostile(rng, depth - 1)})"
        case 6:
            return f"[{part}][0]['metadata']['solutions']"
        case 7:
            repeats = int(rng.choice([1, 10, 1000]))
            return "(" * repeats + part + ")" * repeats
        case _:
            return f"[{part} for x in {part}]"


def main() -> None:
    """Print a row for each dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'dataset':<26}{'worst, ms':>11}{'median, ms':>12}{'most paid':>11}{'growth, MB':>12}")
    for name in sorted(EXPRESSION | LITERAL | {"complex_arithmetic"}):
        rng = np.random.default_rng(arguments.seed)
        task = make_task(name, {"calibration_items": 4, "compact": False})
        example = task.sample(rng, "train")
        no_ids = np.zeros(0, dtype=np.int64)
        task.score(example, example.answer or "", no_ids)  # imports of the library
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, paid = [], 0.0
        for _ in range(arguments.texts):
            text = hostile(rng)
            start = time.perf_counter()
            paid = max(paid, task.score(example, text, no_ids).value)
            seconds.append(time.perf_counter() - start)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(
            f"{name:<26}{1e3 * max(seconds):>11.2f}{1e3 * float(np.median(seconds)):>12.3f}{paid:>11.3f}{grown:>12.1f}"
        )


if __name__ == "__main__":
    main()
