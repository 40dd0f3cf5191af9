"""What a run logs of the inside of its model: attention of its own answers, weights since its start."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig

from worldmtp.agents.rollout import Rollout
from worldmtp.analysis.attention_files import load_attention
from worldmtp.analysis.attention_patterns import PATTERNS, uniform_scores
from worldmtp.model import MTPModel
from worldmtp.model.attention_probe import attention_maps
from worldmtp.model.config import MTPConfig
from worldmtp.tracking import JsonlWriter, MultiWriter, read_records
from worldmtp.training import inside
from worldmtp.training.config import EvalConfig
from worldmtp.training.inside import InsideLog, attended_texts, read_attention

LETTERS = tuple("abcdefgh")
# Row 0: prompt 0 1, the policy's 2 and 3, a world's reply 4 5, the policy's 6. Row 1: prompt 7 1, the policy's 2.
# Row 2: a prompt alone. Row 3: prompt 3, the policy's 4 4 4.
TEXTS = [[0, 1, 2, 3, 4, 5, 6], [7, 1, 2, 0, 0, 0, 0], [5, 6, 0, 0, 0, 0, 0], [3, 4, 4, 4, 0, 0, 0]]
LENGTHS, PROMPTS = [7, 3, 2, 4], [2, 2, 2, 1]
ACTED = [[2, 3, 6], [2, 0, 0], [0, 0, 0], [1, 2, 3]]
STEPS = [[True, True, True], [True, False, False], [False, False, False], [True, True, True]]


@pytest.fixture
def rollout():
    ids, index, steps = torch.tensor(TEXTS), torch.tensor(ACTED), torch.tensor(STEPS)
    none = torch.zeros((4, 3))
    return Rollout(
        input_ids=ids,
        attention_mask=torch.arange(7) < torch.tensor(LENGTHS)[:, None],
        prompt_length=torch.tensor(PROMPTS),
        action_index=index,
        actions=torch.where(steps, ids.gather(1, index), 0),
        step_mask=steps,
        logprobs=none,
        rewards=none,
        terminated=none.bool(),
        truncated=none.bool(),
        group=torch.arange(4),
        exact=torch.zeros(4, dtype=torch.bool),
    )


@pytest.fixture
def model(tiny_trunk):
    trunk = tiny_trunk("qwen3", vocab_size=8)
    return MTPModel.from_trunk(trunk, MTPConfig(depth=3), torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def make_log(tmp_path):
    def make(model, num_attention=8):
        config = EvalConfig(num_attention=num_attention)
        return InsideLog(model, tmp_path, config, LETTERS, nullcontext)

    return make


def test_queries_are_the_places_before_the_policys_tokens(rollout):
    texts = attended_texts(rollout)
    assert texts.queries.tolist() == [[1, 2, 5], [1, 0, 0], [0, 0, 0], [0, 1, 2]]
    assert texts.query_mask.tolist() == STEPS
    assert texts.reply_mask.nonzero()[1].tolist() == [4, 5]
    assert texts.prompt_length.tolist() == PROMPTS


def test_many_places_are_thinned_out_evenly(rollout):
    texts = attended_texts(rollout, num_queries=2)
    assert texts.queries.tolist() == [[1, 5], [1, 0], [0, 0], [0, 2]]
    assert texts.query_mask.tolist() == [[True, True], [True, False], [False, False], [True, True]]


def test_attention_is_that_of_the_texts_in_which_the_policy_acted(model, rollout):
    record = read_attention(model, rollout, 2, LETTERS, 40)
    assert record is not None
    assert record.step == 40
    acted = rollout.select(torch.tensor([0, 1]))
    queries = torch.from_numpy(attended_texts(acted).queries)
    maps = attention_maps(model.trunk, acted.input_ids, queries, acted.attention_mask)
    sink = PATTERNS.index("sink")
    # Three queries of row 0 and one of row 1; all lie behind the first token.
    by_hand = (maps[0, :, :, :, 0].sum(dim=-1) + maps[1, :, :, 0, 0]) / 4
    np.testing.assert_allclose(record.sums.mean()[sink], by_hand.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(record.floor, uniform_scores(attended_texts(acted)))
    assert record.gallery.tokens[0].tolist() == list("abcdefg")


def test_texts_read_one_by_one_are_read_as_together(model, rollout, monkeypatch):
    together = read_attention(model, rollout, 8, LETTERS, 0)
    monkeypatch.setattr(inside, "_MAX_NUMBERS", 1)
    alone = read_attention(model, rollout, 8, LETTERS, 0)
    assert together is not None
    assert alone is not None
    assert together.sums.count[0].tolist() == [3, 1, 2]  # of three texts; the last one's first query is the sink itself
    np.testing.assert_allclose(alone.sums.total, together.sums.total, rtol=1e-5, atol=1e-6)


def test_without_a_token_of_the_policys_nothing_is_read(model, rollout):
    assert read_attention(model, rollout.select(torch.tensor([2])), 8, LETTERS, 0) is None


def test_a_model_in_training_mode_is_read_without_dropout_and_left_so(tiny_trunk, rollout):
    trunk = tiny_trunk("llama", vocab_size=8)
    trunk.config.attention_dropout = 0.5
    model = MTPModel.from_trunk(trunk.train(), MTPConfig(depth=2), torch.Generator().manual_seed(0)).train()
    first, second = (read_attention(model, rollout, 8, LETTERS, 0) for _ in range(2))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.sums.total, second.sums.total)
    assert model.trunk.training


def test_log_and_files(model, rollout, make_log, tmp_path):
    log = make_log(model)
    assert log.notes == ()
    log.remember_start()
    with MultiWriter(tmp_path, [JsonlWriter(tmp_path)]) as writer:
        log.write(rollout, writer, tmp_path, 12)
    logged = read_records(tmp_path / "metrics.jsonl")[0]
    record = load_attention(tmp_path / "attention" / "step_000000000012.npz")
    assert logged["step"] == 12
    sink = record.sums.mean()[PATTERNS.index("sink"), 1]
    assert logged["attention/layer_2/sink_strongest"] == pytest.approx(sink.max(), rel=1e-5)
    assert logged["attention/layer_2/sink"] == pytest.approx(sink.mean(), rel=1e-5)
    assert logged["heads/depth_2/drift"] == 0.0


def test_drift_is_measured_from_the_start_of_the_run_after_a_resumption(model, rollout, make_log, tmp_path):
    make_log(model).remember_start()
    with torch.no_grad():
        for weight in model.heads.parameters():
            weight.mul_(3.0)  # |3 W - W| / |W| = 2
    log = make_log(model)
    log.remember_start()
    with MultiWriter(tmp_path, [JsonlWriter(tmp_path)]) as writer:
        log.write(rollout, writer, tmp_path, 0)
    logged = read_records(tmp_path / "metrics.jsonl")[0]
    assert logged["heads/depth_2/drift"] == pytest.approx(2.0, rel=1e-5)
    assert logged["heads/depth_3/drift"] == pytest.approx(2.0, rel=1e-5)


def test_trunk_that_cannot_be_read_is_told_of_and_its_heads_are_logged(rollout, make_log, tmp_path):
    trunk = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=8, hidden_size=16, n_layer=2, n_head=4))
    model = MTPModel.from_trunk(trunk, MTPConfig(head="medusa", depth=2), torch.Generator().manual_seed(0)).eval()
    log = make_log(model)
    (note,) = log.notes
    assert note.startswith("attention is not read: BloomForCausalLM has shown the attention of 0 of its 2 layers")
    log.remember_start()
    with MultiWriter(tmp_path, [JsonlWriter(tmp_path)]) as writer:
        log.write(rollout, writer, tmp_path, 0)
    logged = read_records(tmp_path / "metrics.jsonl")[0]
    assert "heads/depth_2/norm" in logged
    assert not any(tag.startswith("attention/") for tag in logged)
    assert not (tmp_path / "attention").exists()


def test_none_is_read_where_none_is_wanted(model, rollout, make_log, tmp_path):
    log = make_log(model, num_attention=0)
    log.remember_start()
    with MultiWriter(tmp_path, [JsonlWriter(tmp_path)]) as writer:
        log.write(rollout, writer, tmp_path, 0)
    assert log.notes == ()
    assert not (tmp_path / "attention").exists()
