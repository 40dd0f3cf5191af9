"""``worldmtp generate [PROMPT ...]``: prompts in, texts out, decoded with drafts that the trunk verifies.

    worldmtp generate "hello="                                  the model of the newest finished run under ./runs
    worldmtp generate "hello=" --explain                        round by round: drafted, verified, accepted, refused
    worldmtp generate "hello=" "word=" --draft tree --tree 3,2,1
    worldmtp generate --model path/to/checkpoint --draft lookup --temperature 0.8 --top-p 0.95 < prompts.txt

The work is in ``generation.py``, which brings torch and is imported when there is something to run.
"""

import argparse
import sys
from pathlib import Path

from worldmtp.cli.find_model import model_directory, newest_model
from worldmtp.cli.generate_config import AUTO, DRAFTS, GenerateConfig
from worldmtp.cli.launch import fail_cleanly

RUNS = Path("runs")
"""Where ``worldmtp train`` leaves its runs, seen from where it was started."""


def main() -> None:
    """Console script."""
    arguments = _parser().parse_args()
    fail_cleanly(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    draft = arguments.draft
    if draft is None:  # what belongs to one kind of draft says which is meant
        draft = "tree" if arguments.tree is not None else "model" if arguments.draft_model is not None else None
    config = GenerateConfig(
        draft=draft,
        draft_model=arguments.draft_model and model_directory(arguments.draft_model, "--draft-model"),
        num_draft=arguments.num_draft,
        tree=arguments.tree,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        explain=arguments.explain,
        device=arguments.device,
    )
    if arguments.model is None:
        directory, remark = newest_model(RUNS), f", of the newest finished run under ./{RUNS}"
    else:
        directory, remark = model_directory(arguments.model, "--model"), ""
    print(f"model: {directory}{remark}", file=sys.stderr)
    prompts = arguments.prompts or _read_prompts()
    from worldmtp.cli.generation import run

    run(config, directory, prompts)


def _read_prompts() -> list[str]:
    if sys.stdin.isatty():
        print("prompts from the keyboard, a line each; Ctrl-D ends them", file=sys.stderr)
    return sys.stdin.read().splitlines()


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
        epilog='example: worldmtp generate "hello=" --explain',
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
    sampling = parser.add_argument_group("sampling").add_argument
    sampling("--temperature", type=float, default=0.0, metavar="T", help="0, the default, takes the likeliest tokens")
    sampling("--top-k", type=int, default=0, metavar="N", help="draw from so many likeliest tokens; 0 is all")
    sampling("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of this probability")
    sampling("--repetition-penalty", type=float, default=1.0, metavar="X", help="of tokens already there; 1 is none")
    sampling("--seed", type=int, default=0, metavar="N", help="of the draws")
    return parser
