"""Golden texts of every kind of draft, greedy and sampled: tokens, log-probabilities, and what each round accepted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from worldmtp import MTPModel
from worldmtp.decoding import LossyTopN, LossyTypical, generate, parallel_beam

MakeModel = Callable[..., MTPModel]
MakeTrunk = Callable[..., PreTrainedModel]
Golden = Callable[..., None]
VOCAB, SEED = 7, 4
"""So few tokens that random heads are right now and then; of six seeds, one with which all of them are."""
PROMPTS = [[2, 3, 4, 5, 6, 2, 3], [5, 5, 2], [6], [3, 4, 3, 4, 3], [2, 6, 5], [4, 4, 2, 3, 5, 6], [6, 6, 3, 2]]

CASES: dict[str, dict[str, Any]] = {
    "none": {"draft": "none"},
    "lookup": {"draft": "lookup", "num_draft": 3},
    "model": {"num_draft": 3},
    **{head: {"head": head} for head in ("blockwise", "eagle", "hydra", "latent", "linear", "medusa", "modulated")},
    "parallel": {"head": "parallel"},
    "sequential": {"head": "sequential"},
    "sequential_one": {"head": "sequential", "num_draft": 1},
    "sequential_shared": {"head": "sequential", "share_depths": True},
    "latent_far": {"head": "latent", "num_draft": 6},
    "latent_tree": {"head": "latent", "tree": (2, 2, 1)},
    "sequential_tree": {"head": "sequential", "tree": (2, 2, 1)},
    "medusa_tree": {"head": "medusa", "tree": (3, 2, 1)},
    "sequential_processed": {
        "head": "sequential",
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "stop_sequences": [(3, 3), (6, 2, 6)],
    },
    "latent_typical": {"head": "latent", "lossy": LossyTypical()},
    "medusa_top_n": {"head": "medusa", "lossy": LossyTopN(n=2, delta=0.3)},
}


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Padded on the left."""
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    return ids, mask


def decoded(model: MTPModel, **settings: Any) -> dict[str, Any]:
    output = generate(model, *prompts(), max_new_tokens=14, eos_token_id=1, pad_token_id=0, **settings)
    return {
        "sequences": ["".join(map(str, row)) for row in output.sequences.tolist()],
        "lengths": output.lengths.tolist(),
        "logprobs": output.logprobs.tolist(),
        "num_trunk_forwards": output.num_trunk_forwards,
        "num_rounds": output.num_rounds.tolist(),
        "drafted_per_depth": output.drafted_per_depth.tolist(),
        "accepted_per_depth": output.accepted_per_depth.tolist(),
    }


@pytest.mark.parametrize("case", CASES)
def test_texts_are_the_recorded_ones(case: str, golden: Golden, drawn_model: MakeModel, drawn_trunk: MakeTrunk) -> None:
    settings = dict(CASES[case])
    heads = {name: settings.pop(name) for name in ("head", "share_depths") if name in settings}
    model = drawn_model(VOCAB, SEED, **({"head": "latent", "depth": 4} | heads))
    if case == "model":
        settings["draft"] = drawn_trunk(VOCAB, SEED, hidden_size=8, num_layers=1)
    trace = {
        "greedy": decoded(model, **settings),
        "sampled": decoded(model, do_sample=True, generator=torch.Generator().manual_seed(0), **settings),
    }
    if case != "none":
        assert all(sum(texts["accepted_per_depth"]) > 0 for texts in trace.values()), "no round accepts a draft"
    golden("decoding", case, trace)


def test_three_phases_are_the_recorded_ones(golden: Golden, drawn_model: MakeModel) -> None:
    golden("decoding", "three_phases", decoded(drawn_model(VOCAB, SEED, head="medusa", depth=4), three_phase=True))


def test_beams_are_the_recorded_ones(golden: Golden, drawn_model: MakeModel) -> None:
    model = drawn_model(VOCAB, SEED, head="latent", depth=4)
    output = parallel_beam(
        model, *prompts(), max_new_tokens=9, num_beams=3, widths=(3, 2, 2), eos_token_id=1, pad_token_id=0
    )
    trace = {
        "sequences": output.sequences.tolist(),
        "lengths": output.lengths.tolist(),
        "scores": output.scores.tolist(),
        "num_trunk_forwards": output.num_trunk_forwards,
        "num_rounds": output.num_rounds,
    }
    golden("decoding", "beams", trace)


def test_every_record_is_compared(recorded: Callable[[str], set[str]]) -> None:
    assert recorded("decoding") == {*CASES, "three_phases", "beams"}
