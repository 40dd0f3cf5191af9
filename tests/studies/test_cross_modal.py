"""The study of two senses: its world is as described, an exact filter is at its optimum, arms learn what they say."""

import json
import pickle
from dataclasses import replace

import pytest
import torch

from worldmtp.studies.cross_modal import (
    ARMS,
    CrossModal,
    CrossModalConfig,
    HeldOut,
    World,
    figures,
    summarize_cross_modal,
)
from worldmtp.studies.protocol import Arm, Study
from worldmtp.studies.training import Batch

SMALL = CrossModalConfig(
    seeds=[0, 1], num_moments=6, hidden_size=16, intermediate_size=16, num_layers=1, num_attention_heads=2,
    num_steps=2, batch_size=4, num_eval_sequences=12,
)  # fmt: skip


def held_out(world, moments, num_sequences, seed):
    tokens, states = world.both.sample(num_sequences, 2 * moments, torch.Generator().manual_seed(seed))
    return HeldOut(tokens, states[:, 1::2], world.both.beliefs(tokens)[:, 2::2, :9])


def test_the_first_shows_u_and_the_second_u_plus_v():
    world = World.of(replace(SMALL, first_clarity=1.0, second_clarity=1.0, stay=1.0 - 1e-9))
    tokens, states = world.both.sample(20, 8, torch.Generator().manual_seed(0))
    places = states[:, 1::2]
    assert torch.equal(tokens[:, 0::2], places // 3)
    assert torch.equal(tokens[:, 1::2] - 3, (places // 3 + places % 3) % 3)
    assert world.first.num_symbols == 3
    assert world.both.num_symbols == SMALL.vocab_size


@pytest.mark.parametrize("alone", [False, True])
def test_an_exact_filter_is_at_the_optimum_it_is_compared_with(alone):
    world = World.of(SMALL)
    probe, test = held_out(world, 10, 60, 0), held_out(world, 10, 60, 1)
    source = world.first if alone else world.both
    read = [source.beliefs(part.tokens[:, :: 2 if alone else 1])[:, 1:] for part in (probe, test)]
    found = figures(read, source.next_token(read[1]).log(), world, probe, test, alone)
    assert found["excess"] == pytest.approx(0, abs=1e-6)
    assert found["return"] == found["best_return"]
    assert found["belief_r2"] == pytest.approx(found["best_belief_r2"])
    if alone:
        assert found["best_belief_r2"] < 0.5  # a tells little of v
    else:
        assert found["best_belief_r2"] == pytest.approx(1, abs=1e-4)
        # By hand: the best guess of each moment's belief, from the fifth on.
        right = test.beliefs[:, 4:].argmax(dim=2) == test.states[:, 4:]
        assert found["best_return"] == pytest.approx(float(right.double().mean()))
        logs = world.both.next_token(world.both.beliefs(test.tokens)[:, :-1]).log()
        logs = logs.gather(2, test.tokens[..., None])[..., 0]
        assert found["best_loss"] == pytest.approx(-float(logs[:, 8::2].mean()))


@pytest.mark.parametrize("name", ARMS)
def test_arms_see_and_learn_what_they_say(name):
    study = CrossModal(SMALL)
    batch = study._batches(Arm(name, 0), World.of(SMALL))(0)
    assert isinstance(batch, Batch)
    assert batch.input_ids.shape == (4, 12)  # equal tokens
    targets = batch.labels != -100
    if name in ("first", "first_twice"):
        assert torch.equal(targets, (torch.arange(12) % 2 == 0).expand(4, -1))
    else:
        assert bool(targets.all())
    assert bool((batch.input_ids[:, 1::2] >= 3).all()) is (name != "first_alone")


def test_a_whole_study(tmp_path, nobody, global_rng_untouched):
    study = pickle.loads(pickle.dumps(CrossModal(SMALL)))
    assert isinstance(study, Study)
    assert [arm.label for arm in study.arms()][:5] == [*(f"{name}_seed0" for name in ARMS), "both_seed1"]
    with global_rng_untouched():
        study.prepare(tmp_path, nobody)
        results = [json.loads(json.dumps(study.run_arm(arm, tmp_path, nobody))) for arm in study.arms()]
        assert study.run_arm(study.arms()[4], tmp_path, nobody) == results[4]
    assert all(result["best_loss"] < result["loss"] for result in results)
    assert "both - first_alone" in study.summarize(results).markdown


def test_table_by_hand():
    def result(variant: str, seed: int, value: float) -> dict:
        names = ("loss", "excess", "belief_r2", "return", "best_loss", "best_belief_r2", "best_return")
        return {"variant": variant, "seed": seed, **dict.fromkeys(names, value)}

    results = [result("both", 0, 0.5), result("first", 0, 0.25), result("both", 1, 0.7), result("first", 1, 0.45)]
    lines = summarize_cross_modal(results).markdown.splitlines()
    assert lines[4].startswith("| both | 0.600 [")
    assert lines[5].endswith("| 0.350 | 0.350 | 0.350 |")
    # Seeds differ, the differences within a seed do not.
    assert lines[9] == "| both - first | " + " | ".join(["0.250 [0.250, 0.250]"] * 4) + " |"


@pytest.mark.parametrize(
    ("values", "message"),
    [({"seeds": []}, "seeds is empty"), ({"num_moments": 4}, "num_moments=4 must exceed the 4 that are not measured")],
)
def test_wrong_settings(values, message):
    with pytest.raises(ValueError, match=message):
        CrossModalConfig(**values)
