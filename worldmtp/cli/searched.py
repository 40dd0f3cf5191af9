"""``worldmtp generate --search``: tokens are planned in the model's own world model; the trees as text or as a page.

``show_explained`` shows those of ``worldmtp eval --search --explain``, in whose environments a world may reply.

Prompts are searched side by side, one tree each, ``--batch-size`` at a time. Values, rewards and ends are what the
model's world heads say; a plan discounts as the run did that trained them, or as ``--gamma`` says.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from worldmtp.agents.acting_search import q_transform_of
from worldmtp.agents.answers import ExplainedAnswers
from worldmtp.atomic_files import write_bytes
from worldmtp.cli.arguments import check_page, run_config, search_discount, tell_search
from worldmtp.cli.generate_config import GenerateConfig
from worldmtp.cli.generation import load_searched, print_text
from worldmtp.cli.prompts import decode_text, encode_prompts
from worldmtp.cli.tree_page import tree_page
from worldmtp.cli.tree_text import tree_lines
from worldmtp.cli.writing import Marks, Writing
from worldmtp.dynamics import acting_policy, make_world_model
from worldmtp.model import MTPModel
from worldmtp.model.categorical import draw
from worldmtp.search import TurnWorldModel, plan
from worldmtp.search.explain import Planned, Spoken, line_of, tree_of


def write_searched(config: GenerateConfig, directory: Path, prompts: Sequence[str]) -> None:
    """Print the texts of prompts, or with ``--explain`` every tree; the account goes to the standard error.

    Raises:
        TypeError: the heads are blind to actions.
        ValueError: the model's values say nothing of what follows, or the prompts, the model and the config do not fit.
    """
    gamma, told = search_discount(config.gamma, run_config(directory))
    config = replace(config, gamma=gamma)
    decoding = load_searched(config, directory)
    model, tokenizer = decoding.model, decoding.tokenizer
    check_values(model)
    check_page(config.tree_html, "--tree-html")
    tell_search(gamma, told, config.acting_search.scale)
    input_ids, mask = encode_prompts(tokenizer, prompts)
    texts = [ids[real.bool()].tolist() for ids, real in zip(input_ids, mask, strict=True)]
    start = time.perf_counter()
    most, generator = decoding.max_new_tokens(max(map(len, texts))), torch.Generator().manual_seed(config.seed)
    plans: list[list[Planned]] = []
    for first in range(0, len(texts), config.batch_size):
        batch = texts[first : first + config.batch_size]
        plans += search_texts(model, batch, most, decoding.eos_token_ids, config, generator)
    seconds = time.perf_counter() - start
    conditions = decoding.conditions(str(min(len(prompts), config.batch_size)))
    console = Console(highlight=False, emoji=False)
    writing = Writing(tokenizer, Marks.for_encoding(console.encoding))
    for prompt, text, one in zip(prompts, texts, plans, strict=True):
        new = [token for planned in one for token in planned.written]
        if config.explain:
            for number, planned in enumerate(one, start=1):
                for line in tree_lines(number, planned, writing):
                    console.print(line, soft_wrap=True)
        print_text(decoding, prompt, text, new, len(one))
    if config.tree_html is not None:
        written = [Spoken.of_one(tuple(token for planned in one for token in planned.written)) for one in plans]
        write_bytes(config.tree_html, tree_page(prompts, written, plans, tokenizer, conditions).encode())
        print(f"trees: {config.tree_html}", file=sys.stderr)
    num_plans, num_tokens = sum(map(len, plans)), sum(len(planned.written) for one in plans for planned in one)
    print(
        f"{num_tokens} tokens by {num_plans} plans of {config.acting_search.tree.num_simulations} simulations, "
        f"{seconds:.3f} s not warmed up; {conditions}",
        file=sys.stderr,
    )


def show_explained(
    found: ExplainedAnswers, tokenizer: PreTrainedTokenizerBase, env_id: str, shows_trees: bool, page: Path | None
) -> None:
    """Print how texts of an environment were planned, every tree and then the text, or write the trees as a page."""
    console = Console(highlight=False, emoji=False)
    writing = Writing(tokenizer, Marks.for_encoding(console.encoding))
    conditions = f"{found.answers.way}, {env_id}"
    scores, exact = found.answers.score.tolist(), found.answers.exact.tolist()
    for text, plans, score, is_exact in zip(found.texts, found.plans, scores, exact, strict=True):
        if shows_trees:
            for number, planned in enumerate(plans, start=1):
                for line in tree_lines(number, planned, writing):
                    console.print(line, soft_wrap=True)
        verdict = f"  score {score:.3f}{', exact' if is_exact else ''}"
        console.print(writing.spoken(text), verdict, sep="", soft_wrap=True)
    print(f"what the environment wrote stands in {' '.join(writing.marks.heard)}; {conditions}", file=sys.stderr)
    if page is not None:
        starts = [text.is_heard.index(False) for text in found.texts]  # the opening is a prompt of its own
        prompts = [decode_text(tokenizer, text.tokens[:n]) for text, n in zip(found.texts, starts, strict=True)]
        new = [Spoken(text.tokens[n:], text.is_heard[n:]) for text, n in zip(found.texts, starts, strict=True)]
        write_bytes(page, tree_page(prompts, new, found.plans, tokenizer, conditions).encode())
        print(f"trees: {page}", file=sys.stderr)


def check_values(model: MTPModel) -> None:
    """Raise ValueError if the model's world heads are as they were made, and say the same of every text."""
    heads = model.world_heads
    if not any(bool(list(head.parameters())[-2].any()) for head in (heads.value, heads.reward)):  # the last weight
        raise ValueError(
            "the model's value and reward heads are as they were made and say the same of every text, so that a search "
            "has nothing to look for; train them (worldmtp train), or decode without --search."
        )


@torch.no_grad()
def search_texts(
    model: MTPModel,
    texts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    config: GenerateConfig,
    generator: torch.Generator,
) -> list[list[Planned]]:
    """Return the plans of each text, one after another until it ends; all texts are searched at a time."""
    how = config.acting_search
    inner, q_transform = make_world_model(how.dynamics, model, generator), q_transform_of(how, model)
    world_model = TurnWorldModel(inner, eos_token_ids, ends_episode=True)
    policy = acting_policy(config.temperature or 1.0)
    how.tree.depth(world_model.max_horizon)  # refused before anything is planned
    plans: list[list[Planned]] = [[] for _ in texts]
    now, limits = [list(text) for text in texts], [len(text) + max_new_tokens for text in texts]
    live = list(range(len(texts)))
    while live:
        length = max(len(now[row]) for row in live)
        ids = torch.tensor([now[row] + [0] * (length - len(now[row])) for row in live], device=model.device)
        lengths = torch.tensor([len(now[row]) for row in live], device=model.device)
        state = world_model.encode(ids, torch.arange(length, device=model.device) < lengths[:, None])
        room = torch.tensor([limits[row] for row in live], device=model.device) - lengths
        root = world_model.limited(state, room)
        found = plan(how.rule, world_model, root, policy, how.tree, q_transform=q_transform)
        if config.temperature > 0:
            slots = draw(found.weights.log(), generator)
            found = replace(found, actions=found.tokens.gather(1, slots[:, None])[:, 0])
        for place, row in enumerate(live):
            tree = tree_of(found, place)
            written = line_of(tree, config.commit or 1) or [int(found.actions[place])]
            ended = next((n for n, token in enumerate(written) if token in eos_token_ids), len(written) - 1)
            written = written[: ended + 1]
            plans[row].append(Planned(Spoken.of_one(tuple(now[row])), tree, tuple(written), float(found.value[place])))
            now[row] += written
        live = [row for row in live if now[row][-1] not in eos_token_ids and len(now[row]) < limits[row]]
    return plans
