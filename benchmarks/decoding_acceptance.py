"""Tokens a trunk forward, and where they come from: by depth, temperature and the trunk's own uncertainty.

    python benchmarks/decoding_model.py && python benchmarks/decoding_acceptance.py

Prompts are of held-out files; what counts is what the model itself goes on to say. First what decoding did, with drafts
of all depths: accepted in a row (cumulative), and given that the one before was (conditional). Then the same by how
unsure the trunk is: positions of its own texts, in quarters by the entropy of the token that the first draft is for.
Intervals are 90 %, over held-out files.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmtp.decoding import generate
from worldmtp.model import MTPModel
from worldmtp.model.categorical import entropy_per_token
from worldmtp.statistics import ratio_interval
from worldmtp.studies.batches import document_ids_at, eval_starts, eval_windows
from worldmtp.studies.corpus import load_tokens

PROMPT = 32
ROWS_AT_ONCE = 32


def by_depth(model: MTPModel, prompts: torch.Tensor, files: np.ndarray, temperature: float, args: Any) -> str:
    """A row of the first table."""
    sampling: dict[str, Any] = {}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "generator": torch.Generator().manual_seed(0)}
    drafted, accepted = np.zeros(args.num_draft), np.zeros(args.num_draft)
    tokens, rounds = [], []
    for rows in prompts.split(ROWS_AT_ONCE):
        is_real = torch.ones_like(rows)
        output = generate(model, rows, is_real, max_new_tokens=args.new_tokens, num_draft=args.num_draft, **sampling)
        drafted += output.drafted_per_depth
        accepted += output.accepted_per_depth
        tokens.append(output.lengths.numpy() - 1)
        rounds.append(output.num_rounds)
    sums = [np.bincount(files, weights=np.concatenate(parts)) for parts in (tokens, rounds)]
    cumulative = accepted / drafted
    conditional = cumulative / np.concatenate([[1.0], cumulative[:-1]])
    cells = [f"{a:.3f} ({c:.3f})" for a, c in zip(cumulative, conditional, strict=True)]
    return f"| {temperature:g} | {ratio_interval(*sums, generator=0, unit='file')} | {' | '.join(cells)} |"


@torch.no_grad()
def by_entropy(model: MTPModel, prompts: torch.Tensor, args: Any) -> list[str]:
    """The second table: greedy texts, read with the true tokens before each draft."""
    hits, entropies = [], []
    for rows in prompts.split(ROWS_AT_ONCE):
        is_real = torch.ones_like(rows)
        texts = generate(model, rows, is_real, max_new_tokens=args.new_tokens, draft="none").sequences
        roots = torch.arange(PROMPT - 1, texts.shape[1] - args.num_draft - 1)
        latents = model.latents(texts)
        log_probs = model.logits_of(latents[0][:, roots + 1]).log_softmax(dim=-1)
        entropies.append(entropy_per_token(log_probs).flatten())
        right = torch.stack(
            [
                model.logits_of(latents[depth - 1][:, roots], depth).argmax(dim=-1) == texts[:, roots + depth]
                for depth in range(2, args.num_draft + 2)
            ],
            dim=-1,
        )
        hits.append(right.long().cumprod(dim=-1).flatten(0, 1))
    entropy, accepted = torch.cat(entropies), torch.cat(hits).double()
    quarters = torch.bucketize(entropy, entropy.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=entropy.dtype)))
    lines = []
    for quarter in range(4):
        inside = quarters == quarter
        cells = [f"{value:.3f}" for value in accepted[inside].mean(dim=0).tolist()]
        tau = 1 + float(accepted[inside].sum(dim=-1).mean())
        lines.append(f"| {quarter + 1} | {float(entropy[inside].mean()):.2f} | {tau:.2f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/decoding_model"))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 0.8, 1.0])
    parser.add_argument("--num-draft", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = MTPModel.from_pretrained(args.directory / "model").eval()
    tokens = load_tokens(args.directory)
    length = PROMPT + args.new_tokens
    prompts = eval_windows(tokens["held_out"], length, args.prompts)[:, :PROMPT]
    starts = eval_starts(len(tokens["held_out"]), length, args.prompts)
    files = document_ids_at(tokens["held_out_starts"], starts, 1)[:, 0].numpy()
    print(
        f"head {model.config.head}, K={model.config.depth}, {args.num_draft} drafts; {args.prompts} prompts of "
        f"{PROMPT} tokens from {len(set(files.tolist()))} files, {args.new_tokens} new tokens\n"
    )
    depths = [f"depth {depth}" for depth in range(2, args.num_draft + 2)]
    print(f"| temperature | tokens a forward | {' | '.join(depths)} |\n{'|---' * (2 + len(depths))}|")
    for temperature in args.temperatures:
        print(by_depth(model, prompts, files, temperature, args), flush=True)
    print(f"\n| quarter by entropy | mean, nats | tau | {' | '.join(depths)} |\n{'|---' * (3 + len(depths))}|")
    print("\n".join(by_entropy(model, prompts, args)))


if __name__ == "__main__":
    main()
