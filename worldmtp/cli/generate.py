"""``worldmtp generate [PROMPT ...]``: prompts in, texts out, decoded with drafts that the trunk verifies.

    worldmtp generate "hello="                                  the model of the newest finished run under ./runs
    worldmtp generate "hello=" --explain                        round by round: drafted, verified, accepted, refused
    worldmtp generate "hello=" "word=" --draft tree --tree 3,2,1
    worldmtp generate --model path/to/checkpoint --draft lookup --temperature 0.8 --top-p 0.95 < prompts.txt
    tail -f prompts.txt | worldmtp generate --stop ";" --json   lines are answered as they come
    worldmtp generate "hello=" --beam 4                         a search for a likely text
    worldmtp generate "hello=" --search gumbel --explain        a search for a text of a large return, and its trees

The work is in ``generation.py``, which imports torch, so it is imported when there is something to run.
"""

import argparse
import os
import select
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TextIO

from worldmtp.agents.search_config import SCALES, ActingSearch
from worldmtp.cli.arguments import import_run_modules, model_directory, newest_model, run_config
from worldmtp.cli.errors import fail_cleanly
from worldmtp.cli.generate_config import (
    AUTO,
    DEFAULT_BATCH_SIZE,
    DEFAULT_SIMULATIONS,
    DRAFTS,
    SEARCHED_DYNAMICS,
    SEARCHES,
    GenerateConfig,
)

RUNS = Path("runs")
"""Where ``worldmtp train`` leaves its runs, seen from where it was started."""


def main() -> None:
    """Run the command."""
    arguments = _parser().parse_args()
    fail_cleanly(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    draft = arguments.draft
    if draft is None:  # what belongs to one kind of draft says which is meant
        draft = "tree" if arguments.tree is not None else "model" if arguments.draft_model is not None else None
    given = {field.name: getattr(arguments, field.name) for field in fields(GenerateConfig)}
    drafting = arguments.draft_model and model_directory(arguments.draft_model, "--draft-model")
    config = GenerateConfig(**given | {"draft": draft, "draft_model": drafting, "stop": tuple(arguments.stop)})
    if arguments.model is None:
        directory, remark = newest_model(RUNS), f", of the newest finished run under ./{RUNS}"
    else:
        directory, remark = model_directory(arguments.model, "--model"), ""
    print(f"model: {directory}{remark}", file=sys.stderr)
    import_run_modules(run_config(directory))
    from worldmtp.cli.generation import explain_prompt, write_texts

    if config.search is not None:
        from worldmtp.cli.searched import write_searched

        write_searched(config, directory, arguments.prompts or _all_lines())
    elif config.explain:
        explain_prompt(config, directory, arguments.prompts or _all_lines())
    elif arguments.prompts:
        starts = range(0, len(arguments.prompts), config.batch_size)
        write_texts(config, directory, [arguments.prompts[start : start + config.batch_size] for start in starts])
    else:
        if sys.stdin.isatty():
            print("prompts from the keyboard, a line each; Ctrl-D ends them", file=sys.stderr)
        write_texts(config, directory, line_batches(sys.stdin, config.batch_size))


def line_batches(stream: TextIO, size: int) -> Iterator[list[str]]:
    """Yield the lines of a stream, ``size`` at a time, or fewer rather than wait for a line that has not come yet.

    Blank lines, which ask nothing, are left out with a note. The stream's descriptor is read, so nothing may have been
    read from the stream before.
    """
    descriptor = stream.fileno()
    lines, rest, is_open, num_read = list[str](), b"", True, 0
    while is_open or lines:
        is_there = is_open and bool(select.select([descriptor], [], [], 0)[0])
        if is_open and len(lines) < size and (is_there or not lines):
            chunk = os.read(descriptor, 2**16)
            *whole, rest = (rest + chunk).split(b"\n")
            is_open = bool(chunk)
            if rest and not is_open:  # a last line without an end
                whole.append(rest)
            for line in whole:
                text = line.decode(stream.encoding, stream.errors or "strict").removesuffix("\r")
                num_read += 1
                if text:
                    lines.append(text)
                else:
                    print(f"note: line {num_read} of the input is blank and left out", file=sys.stderr)
        else:
            yield lines[:size]
            del lines[:size]


def _all_lines() -> list[str]:
    return list(filter(None, sys.stdin.read().splitlines()))


def _num_draft(text: str) -> int | str:
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of tokens, or {AUTO}.") from None


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be numbers of candidates, one for each token ahead, as 3,2,1."
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="worldmtp generate",
        description=(
            "Write on from prompts. Drafts by the model's own heads, by repetitions of the text or by a smaller model "
            "are verified by the trunk, so texts are those of the trunk alone, in fewer forwards."
        ),
        epilog='example: worldmtp generate "hello=" --explain. A page in docs/ of the repository: decoding.md.',
    )
    add = parser.add_argument
    add(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="texts to go on from, behind -- where one begins with -; without any, the lines of standard input",
    )
    add(
        "--model",
        type=Path,
        metavar="PATH",
        help="a run directory, a saved MTPModel or a checkpoint of a Hugging Face causal LM; by default the model of "
        "the newest finished run under ./runs",
    )
    add("--max-new-tokens", type=int, metavar="N", help="at most; by default 64, or what the context has room for")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends a text, and is left out of it; repeatable")
    add(
        "--batch-size",
        type=int,
        default=DEFAULT_BATCH_SIZE,
        metavar="N",
        help=f"prompts decoded at a time, by default {DEFAULT_BATCH_SIZE}; lines of standard input are answered as "
        "they come",
    )
    add("--json", action="store_true", help="one JSON object a line: prompt, text, tokens, reason, rounds")
    add("--device", help="cpu, cuda, ...; by default cuda where there is one")
    add("--explain", action="store_true", help="show one prompt's decoding step by step, beside that without drafts")
    drafting = parser.add_argument_group("drafts").add_argument
    drafting(
        "--draft", metavar="KIND", help=f"{', '.join(DRAFTS)}; by default mtp where the model has heads, else none"
    )
    drafting(
        "--num-draft",
        type=_num_draft,
        metavar="N",
        help="tokens a draft; by default K - 1 of heads of depth K, else 4; auto finds out what is fastest",
    )
    drafting(
        "--tree",
        type=_widths,
        metavar="N,N,..",
        help="candidates for each token ahead; by default 3,2,1,1,.. to the heads' depth",
    )
    drafting("--draft-model", type=Path, metavar="PATH", help="a smaller model with the same vocabulary")
    drafting("--three-phase", action="store_true", help="predict and verify in separate forwards, for comparison")
    searching = parser.add_argument_group("search, which does not keep to the trunk's law").add_argument
    searching("--beam", type=int, metavar="N", help="search for the likeliest text and keep N at a time")
    searching(
        "--widths",
        type=_widths,
        metavar="N,N,..",
        help="candidates for each token ahead, of the trunk and then of heads without attention; by default those of "
        "--beam alone, which is beam search",
    )
    searching("--search", metavar="RULE", help=f"plan each token in the model's own world model: {', '.join(SEARCHES)}")
    searching("--simulations", type=int, metavar="N", help=f"of each plan, by default {DEFAULT_SIMULATIONS}")
    searching("--dynamics", metavar="KIND", help=f"search the heads or the trunk: {', '.join(SEARCHED_DYNAMICS)}; mtp")
    searching("--depth", type=int, metavar="N", help="tokens a plan looks ahead; by default all that the heads have")
    searching("--width", type=int, metavar="N", help="likeliest tokens of a node that a plan knows; by default 16")
    searching("--scale", metavar="KIND", help=f"measure values by {' or '.join(SCALES)}; {ActingSearch.scale}")
    searching("--gamma", type=float, metavar="G", help="discount of a plan; by default the run's agent.ppo.gamma, or 1")
    searching("--commit", type=int, metavar="N", help="tokens that a plan writes, by default 1")
    searching("--tree-html", type=Path, metavar="FILE", help="write the trees of a search as one page, opened offline")
    sampling = parser.add_argument_group("sampling").add_argument
    sampling("--temperature", type=float, default=0.0, metavar="T", help="0, the default, takes the likeliest tokens")
    sampling("--top-k", type=int, default=0, metavar="N", help="draw from so many likeliest tokens; 0 is all")
    sampling("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of this probability")
    sampling("--repetition-penalty", type=float, default=1.0, metavar="X", help="of tokens already there; 1 is none")
    sampling("--seed", type=int, default=0, metavar="N", help="of the draws")
    return parser
