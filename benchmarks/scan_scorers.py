"""What every dataset of reasoning-gym pays for constant, respelled and hostile texts, by its own scorer and by ours.

    python benchmarks/scan_scorers.py                              # all datasets, a table in Markdown
    python benchmarks/scan_scorers.py --datasets gcd coin_flip --items 200 --texts 1000

Each dataset is scanned in a process of its own, with limits of time and memory. A dataset gets a row if there is
something to tell:

* floor: the most that one constant text earns on every item (max over texts of the min over items), by the library and
  by ``ReasoningGymTask``, and the library's text;
* refused: respelled oracles (blanks, brackets, letters' case, forms of numbers) that the library pays 1 and we do not,
  of those that the library pays 1, with an example and our reason;
* hidden: the mean that the library pays for the oracle among other text, and that we pay;
* redrawn: share of the items that have no right answer, which our task passes over;
* worst: the longest time of scoring one hostile text, best of three, in ms, and the most that one earned.

``--all`` prints a row for each dataset; ``--json FILE`` keeps the findings.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile_answers import hostile

from worldmtp.envs import make_task
from worldmtp.envs.tasks.reasoning_gym import ReasoningGymTask
from worldmtp.envs.tasks.reasoning_gym_datasets import dataset_names

CONSTANTS = [
    *("", "zz", "a", "A", "x", "C", "0", "1", "-1", "2", "0.5", "1/2", "0123456789", "9" * 40, "\u2603", "\u0663"),
    *("NaN", "nan", "inf", "-inf", "nan+nanj", "True", "False", "None", "null", "yes", "no", "Yes", "No"),
    *("[]", "{}", "()", "[[]]", '""', "[0]", "[1]", ",", ", ", "\u2603 = 1", "1 = 1", "A=1", "A AND B", "A OR NOT A"),
]
_EXTREME = [
    *("1e999999999", "-1e999999999", "1e-999999999", "1e99999999/3", "1e999999+1e999999j", "9" * 5000, "9" * 100_000),
    *("0x" + "f" * 50_000, "1/0", "9" * 4000 + "/" + "7" * 4000, "[" * 50_000 + "]" * 50_000, "{" * 50_000),
    *('{"a":' * 2000 + "1" + "}" * 2000, "A+999999999 B-999999999", "R999999999", "(R U)999999999", "zz " * 20_000),
    *("\n" * 50_000, "A=" + "9" * 4000, "A AND " * 5000 + "A", "NOT " * 5000 + "A", "(" * 5000 + "A" + ")" * 5000),
    *("2 \u00d7 " * 5000 + "2", "1," * 20_000 + "1", "9999999:99:99", "99999999999 days, 1:1", "1e308,-1e308,nan"),
]
_NO_IDS = np.zeros(0, dtype=np.int64)


def respelled(answer: str) -> list[str]:
    """Other ways of writing an answer. Not all mean the same in every dataset: only what the library pays counts."""
    texts = [
        *(f" {answer} ", f"{answer}\n", answer.replace(" ", ""), answer.replace(" ", "  "), answer.replace(",", ", ")),
        *(answer.replace(", ", ","), answer.replace("\n", " \n"), answer.upper(), answer.lower(), answer.title()),
        *(f"({answer})", f"[{answer}]", f'"{answer}"', f"'{answer}'", f"{answer}.", f"{answer}.0", f"{answer}0"),
        *(f"+{answer}", f"0{answer}", f"{answer}/1", f"{answer}e0", f"${answer}$", answer.replace("'", '"')),
        *(answer.replace('"', "'"), answer.replace("_", "."), "\n".join(line.rstrip() for line in answer.split("\n"))),
    ]
    try:
        texts += [f"{int(answer):,}", f"{int(answer)}.00", f"{int(answer)}e0"]
    except ValueError:
        texts.append(answer.replace("\n", "\n\n"))
    return [text for text in dict.fromkeys(texts) if text.strip() != answer.strip()]


def library_score(task: ReasoningGymTask, text: str, entry: dict[str, Any]) -> float:
    """The library's own score of the stripped text; a scorer that raises pays nothing."""
    try:
        return float(task._dataset.score_answer(text.strip(), entry))
    except Exception:  # noqa: BLE001 - what the library raises is counted as it is in training: as no pay
        return 0.0


def our_score(task: ReasoningGymTask, example: Any, text: str) -> tuple[float, str]:
    """Our score and reason; a scorer that raises pays nothing."""
    try:
        score = task.score(example, text, _NO_IDS)
    except Exception as error:  # noqa: BLE001 - as above
        return 0.0, type(error).__name__
    return score.value, score.reason


def scan(name: str, num_items: int, num_texts: int) -> dict[str, Any]:
    """All findings about one dataset; each hostile text is printed before it is scored."""
    task = make_task(f"reasoning_gym:{name}", {"compact": False, "calibration_items": min(num_items, 16)})
    assert isinstance(task, ReasoningGymTask)
    examples = [task.sample(np.random.default_rng(seed), "train") for seed in range(num_items)]
    return {
        "dataset": name,
        "redrawn": task.redrawn_fraction,
        **_floors(task, examples),
        **_refusals(task, examples),
        **_hidden(task, examples),
        **_costs(task, examples[0], num_texts),
    }


def _floors(task: ReasoningGymTask, examples: list[Any]) -> dict[str, Any]:
    def floor(pays: Callable[[Any, str], float]) -> tuple[float, str]:
        least = {}
        for text in CONSTANTS:
            least[text] = 1.0
            for example in examples:
                least[text] = min(least[text], pays(example, text))
                if not least[text] > 0.0:
                    break
        best = max(least, key=lambda text: least[text])
        return least[best], best

    theirs, text = floor(lambda example, text: library_score(task, text, example.meta["entry"]))
    ours, our_text = floor(lambda example, text: our_score(task, example, text)[0])
    return {"floor": theirs, "floor_text": text, "our_floor": ours, "our_floor_text": our_text}


def _refusals(task: ReasoningGymTask, examples: list[Any]) -> dict[str, Any]:
    num_right, refused, no_oracle = 0, [], 0
    for example in examples:
        if example.answer is None:
            continue
        if our_score(task, example, example.answer)[0] < 1.0:
            no_oracle += 1
        for text in respelled(example.answer):
            if library_score(task, text, example.meta["entry"]) >= 1.0:
                num_right += 1
                value, reason = our_score(task, example, text)
                if value < 1.0:
                    refused.append((example.answer[:40], text[:40], reason))
    return {"right": num_right, "refused": len(refused), "refused_examples": refused[:3], "oracle_unpaid": no_oracle}


def _hidden(task: ReasoningGymTask, examples: list[Any]) -> dict[str, Any]:
    """The oracle among other text: between words, and in a list with the answers to other questions."""
    theirs, ours = [], []
    others = [str(example.answer) for example in examples[:8]]
    for example in examples:
        if example.answer is None:
            continue
        for text in (f"zz {example.answer} zz", " ".join([*others, example.answer, *others])):
            theirs.append(library_score(task, text, example.meta["entry"]))
            ours.append(our_score(task, example, text)[0])
    mean = lambda values: float(np.mean(values)) if values else 0.0  # noqa: E731 - two uses
    return {"hidden": mean(theirs), "our_hidden": mean(ours), "hidden_max": max(ours, default=0.0)}


def _costs(task: ReasoningGymTask, example: Any, num_texts: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    worst, worst_text, paid, paid_text = 0.0, "", 0.0, ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in [*_EXTREME, *(hostile(rng) for _ in range(num_texts))]:
        print(json.dumps({"at": text[:60]}), flush=True)
        seconds, value = [], 0.0
        for _ in range(3):
            start = time.perf_counter()
            value, _ = our_score(task, example, text)
            seconds.append(time.perf_counter() - start)
            if seconds[-1] < 0.02:
                break
        if min(seconds) > worst:
            worst, worst_text = min(seconds), text[:40]
        if value > paid:
            paid, paid_text = value, text[:40]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"worst_ms": 1e3 * worst, "worst_text": worst_text, "paid": paid, "paid_text": paid_text, "grown_mb": grown}


def scan_apart(name: str, num_items: int, num_texts: int, seconds: float) -> dict[str, Any]:
    """The findings of ``scan`` in a process of its own, or where it stood when it was killed."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", name, "--items", str(num_items)]
    with subprocess.Popen([*command, "--texts", str(num_texts)], stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if lines and "dataset" in lines[-1]:
        return dict(lines[-1])
    return {"dataset": name, "killed_at": lines[-1]["at"] if lines else "before the first hostile text"}


def row(found: dict[str, Any]) -> str:
    """One row of the table."""
    if "killed_at" in found:
        return f"| {found['dataset']} | killed at `{found['killed_at']}` | | | | |"
    floor = f"{found['floor']:.2f} (`{found['floor_text']}`) -> {found['our_floor']:.2f}"
    refused = f"{found['refused']} of {found['right']}"
    if found["refused_examples"]:
        refused += " such as `{1}` for `{0}`: {2}".format(*found["refused_examples"][0])
    hidden = f"{found['hidden']:.2f} -> {found['our_hidden']:.2f}"
    worst = f"{found['worst_ms']:.1f} (`{found['worst_text']}`), pays {found['paid']:.2f}, {found['grown_mb']:.0f} MB"
    redrawn = f"{found['redrawn']:.3f}"
    return f"| {found['dataset']} | {floor} | {refused} | {hidden} | {worst} | {redrawn} |".replace("\n", "\\n")


def is_remarkable(found: dict[str, Any]) -> bool:
    """Return whether there is something to tell."""
    return "killed_at" in found or bool(
        found["floor"] > 0 or found["our_floor"] > 0 or found["refused"] or found["oracle_unpaid"] or found["redrawn"]
    )


def main() -> None:
    """Scan and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120, help="limit for one dataset")
    parser.add_argument("--memory-gib", type=float, default=6)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        limit = int(arguments.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(json.dumps(scan(arguments.child, arguments.items, arguments.texts)))
        return
    found = []
    names = arguments.datasets or [name for name in dataset_names() if name != "composite"]  # a mixture of the others
    columns = [
        "dataset",
        "floor: library -> ours",
        "right but refused",
        "hidden: library -> ours",
        "worst ms of a text",
    ]
    print(f"| {' | '.join([*columns, 'redrawn'])} |")
    print("|---|---|---|---|---|---|")
    for name in names:
        found.append(scan_apart(name, arguments.items, arguments.texts, arguments.seconds))
        if arguments.all or is_remarkable(found[-1]):
            print(row(found[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
