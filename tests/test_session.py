"""The decoding session against full forwards of unpadded rows, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from worldmtp.config import MTPConfig
from worldmtp.decoding import DecodingSession
from worldmtp.model import MTPModel

MakeTrunk = Callable[..., PreTrainedModel]
LENGTHS = (5, 2, 4)


def make_model(tiny_trunk: MakeTrunk, kind: str) -> MTPModel:
    trunk = tiny_trunk(kind, vocab_size=17, dtype=torch.float64)
    return MTPModel.from_trunk(trunk, MTPConfig(depth=2), torch.Generator().manual_seed(0)).eval()


def make_prompts(side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Three rows of 5, 2 and 4 tokens padded on one side, and each of them alone."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(2, 17, (length,), generator=generator) for length in LENGTHS]
    input_ids, mask = torch.zeros((3, 5), dtype=torch.long), torch.zeros((3, 5), dtype=torch.bool)
    for b, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(5 - len(row), 5)
        input_ids[b, at], mask[b, at] = row, True
    return input_ids, mask, rows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_cached_logits_equal_the_full_forward(kind: str, side: str, tiny_trunk: MakeTrunk) -> None:
    model = make_model(tiny_trunk, kind)
    input_ids, mask, rows = make_prompts(side)
    session = DecodingSession(model)
    logits = session.prefill(input_ids, mask)
    tokens = torch.randint(2, 17, (4, 3), generator=torch.Generator().manual_seed(2))
    for step in range(5):
        for b, row in enumerate(rows):
            plain = model.trunk(input_ids=row[None]).logits[0, -1]
            torch.testing.assert_close(logits[b], plain, atol=1e-11, rtol=0)
        if step < 4:
            logits = session.step(tokens[step])
            rows = [torch.cat([row, tokens[step, b : b + 1]]) for b, row in enumerate(rows)]


@torch.no_grad()
def test_what_stands_in_the_padding_is_not_read(tiny_trunk: MakeTrunk) -> None:
    model = make_model(tiny_trunk, "llama")
    for side in ("left", "right"):
        input_ids, mask, _ = make_prompts(side)
        said = []
        for filler in (0, 9):
            session = DecodingSession(model)
            session.prefill(input_ids.masked_fill(~mask, filler), mask)
            said.append(session.step(torch.tensor([3, 4, 5])))
        torch.testing.assert_close(said[0], said[1], atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_second_prefill_starts_over(tiny_trunk: MakeTrunk) -> None:
    model = make_model(tiny_trunk, "llama")
    input_ids, mask, _ = make_prompts("right")
    session, fresh = DecodingSession(model), DecodingSession(model)
    session.prefill(input_ids.flip(0), mask.flip(0))
    session.step(torch.tensor([3, 4, 5]))
    assert torch.equal(session.prefill(input_ids, mask), fresh.prefill(input_ids, mask))
    assert torch.equal(session.step(torch.tensor([6, 7, 8])), fresh.step(torch.tensor([6, 7, 8])))


def test_no_gradient_is_recorded(tiny_trunk: MakeTrunk) -> None:
    input_ids, mask, _ = make_prompts("right")
    session = DecodingSession(make_model(tiny_trunk, "llama"))
    assert not session.prefill(input_ids, mask).requires_grad
    assert not session.step(torch.tensor([3, 4, 5])).requires_grad


def test_a_row_without_tokens_is_refused(tiny_trunk: MakeTrunk) -> None:
    input_ids, mask, _ = make_prompts("right")
    mask[1] = False
    with pytest.raises(ValueError, match=r"rows \[1\] of the prompts are all padding"):
        DecodingSession(make_model(tiny_trunk, "llama")).prefill(input_ids, mask)


def test_a_step_before_the_prompt_is_refused(tiny_trunk: MakeTrunk) -> None:
    with pytest.raises(RuntimeError, match="the session is empty; call prefill before step"):
        DecodingSession(make_model(tiny_trunk, "llama")).step(torch.tensor([3]))
