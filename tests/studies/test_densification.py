"""What denser supervision is worth: curves and tables by hand, and a whole small study."""

import json
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional

from worldmtp.objective.targets import DepthTargets, depth_targets
from worldmtp.studies import corpus, densification
from worldmtp.studies.corpus import load_corpus
from worldmtp.studies.densification import (
    Densification,
    DensificationConfig,
    held_out,
    summarize_densification,
    supervision_density,
    tokens_to_reach,
)
from worldmtp.studies.protocol import Study

PNG = b"\x89PNG\r\n\x1a\n"
VARIANTS = {"next_token": {"depth": 1}, "mtp": {"depth": 3, "head": "latent"}}


SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_layers": 1,
    "window_tokens": 20,
    "batch_size": 2,
    "num_steps": 5,
    "eval_every": 1,
    "num_eval_windows": 4,
    "num_probe_windows": 6,
    "num_offsets": 4,
}


@pytest.mark.parametrize(
    ("values", "level", "falls", "expected"),
    [
        ([4.0, 3.0, 1.0], 2.0, True, 250.0),  # half of the way from 200 to 300
        ([4.0, 3.0, 1.0], 3.0, True, 200.0),
        ([4.0, 3.0, 1.0], 5.0, True, 100.0),  # there at the first measurement
        ([4.0, 3.0, 1.0], 0.5, True, float("inf")),
        ([4.0, 2.0, 3.0], 2.5, True, 175.0),  # the first crossing counts, whatever comes after
        ([0.1, 0.5, 0.9], 0.4, False, 175.0),
        ([0.1, 0.5, 0.9], 0.95, False, float("inf")),
    ],
)
def test_tokens_to_reach_by_hand(values, level, falls, expected):
    assert tokens_to_reach([100.0, 200.0, 300.0], values, level, falls) == pytest.approx(expected)


def result(variant: str, seed: int, depth: int, losses: list[float]) -> dict[str, Any]:
    curve = [
        {"tokens": 100 * (i + 1), "loss": loss, "accuracy": 1 - loss / 10, "induction": 0.1 * i}
        for i, loss in enumerate(losses)
    ]
    probes = {"states": [0.9, 0.8, 0.7, 0.6], "control": [0.5, 0.4, 0.3, 0.2], "counts": [0.8, 0.7, 0.6, 0.5]}
    density = {"density": 2.5, "trained_density": 1.75}
    return {"variant": variant, "seed": seed, "depth": depth, **density, "curve": curve, "probes": probes}


def test_table_by_hand():
    # Six measurements: the level is that of index int(0.6 * 5) = 3, reached by next-token training at 400 tokens.
    # Seed 0: 5.0, which "mtp" has at 200: 2x. Seed 1: 4.5 at 400, which "mtp" never has: 0x.
    results = [
        result("next_token", 0, 1, [8.0, 7.0, 6.0, 5.0, 4.0, 3.0]),
        result("mtp", 0, 3, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]),
        result("next_token", 1, 1, [9.0, 8.0, 7.0, 4.5, 4.0, 3.5]),
        result("mtp", 1, 3, [9.0, 8.0, 7.0, 6.0, 5.0, 4.9]),
    ]
    summary = summarize_densification(results, "On nothing.")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in summary.markdown.splitlines()[2:4]]
    assert rows[0][:5] == ["next_token", "1x, 2.50x, 1.75x", "1.00x 1.00x", "1.00x 1.00x", "3.000 3.500"]
    assert rows[0][5] == "-"
    assert rows[1][:5] == ["mtp", "3x, 2.50x, 1.75x", "2.00x not reached", "2.00x not reached", "1.000 4.900"]
    assert rows[1][5].startswith("-0.300 [")  # the mean of 1 - 3 and 4.9 - 3.5
    assert rows[1][6:] == ["0.500 0.500", "0.800 (0.400, 0.700), 0.600 (0.200, 0.500)"]
    assert "\n2 seed(s). A gain is tokens of next-token training over tokens of the variant" in summary.markdown
    assert summary.markdown.endswith("On nothing.")
    assert summary.headline == pytest.approx(1.0)  # the mean of 2 and 0
    assert summary.figure is not None
    assert summary.figure.startswith(PNG)


def test_gains_that_are_all_there_have_an_interval_over_seeds():
    # 2x and 4x: mean 3, standard error 1, and t(0.95, 1 degree of freedom) = 6.314.
    base = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0]
    results = [result("next_token", seed, 1, base) for seed in (0, 1)]
    results += [
        result("mtp", 0, 3, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]),
        result("mtp", 1, 3, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]),
    ]
    row = summarize_densification(results, "").markdown.splitlines()[3]
    assert "| 3.000 [-3.314, 9.314]: 2.00x 4.00x |" in row


def test_held_out_is_the_trunks_own_loss(make_model):
    model = make_model(depth=2).train()
    windows = torch.randint(4, (3, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.trunk(windows).logits[:, :-1]
    found = held_out(model, windows)
    assert found["loss"] == pytest.approx(
        float(functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))
    )
    assert found["accuracy"] == pytest.approx(float((logits.argmax(dim=-1) == windows[:, 1:]).float().mean()))
    assert model.training


class Batches(Exception):
    """Stands for training."""


def batches_of(config: DensificationConfig, directory, nobody, monkeypatch) -> list[torch.Tensor]:
    """What the first arm's first two steps train on."""

    def keep(model, batch_of, *rest):
        assert torch.equal(batch_of(1).input_ids, batch_of(1).input_ids)
        raise Batches([batch_of(0).input_ids, batch_of(1).input_ids])

    monkeypatch.setattr(densification, "train_arm", keep)
    study = Densification(config)
    study.prepare(directory, nobody)
    with pytest.raises(Batches) as caught:
        study.run_arm(study.arms()[0], directory, nobody)
    return caught.value.args[0]


def test_pairs_are_planted_where_they_are_asked_for(tmp_path, monkeypatch, nobody):
    """Windows of 20 have five places, so five occurrences fill them: tokens 0 and 1 of every four are the pair."""
    monkeypatch.setattr(corpus, "load_corpus", partial(load_corpus, max_files=20))
    plain, planted = (
        batches_of(
            DensificationConfig(variants=VARIANTS, planted_occurrences=count, **SIZES), tmp_path, nobody, monkeypatch
        )
        for count in (0, 5)
    )
    pairs = []
    for before, after in zip(plain, planted, strict=True):
        fours, untouched = after.view(2, 5, 4), before.view(2, 5, 4)
        assert torch.equal(fours[..., 2:], untouched[..., 2:])
        assert bool((fours[..., :2] == fours[:, :1, :2]).all())
        assert not torch.equal(fours[..., :2], untouched[..., :2])
        pairs += [tuple(pair) for pair in fours[:, 0, :2].tolist()]
    assert len(set(pairs)) == 4  # each window has its own


def test_a_whole_study(tmp_path, monkeypatch, nobody, global_rng_untouched):
    monkeypatch.setattr(corpus, "load_corpus", partial(load_corpus, max_files=20))
    config = DensificationConfig(
        variants=VARIANTS,
        seeds=[0, 1],
        **SIZES,
    )
    study = pickle.loads(pickle.dumps(Densification(config)))
    assert isinstance(study, Study)
    with global_rng_untouched():
        study.prepare(tmp_path, nobody)
        results = [json.loads(json.dumps(study.run_arm(arm, tmp_path, nobody))) for arm in study.arms()]
    assert [(found["variant"], found["seed"]) for found in results] == [
        ("next_token", 0),
        ("mtp", 0),
        ("next_token", 1),
        ("mtp", 1),
    ]
    for found in results:
        assert [point["tokens"] for point in found["curve"]] == [40, 80, 120, 160, 200]
        assert [len(found["probes"][kind]) for kind in ("states", "control", "counts")] == [4, 4, 4]
        assert "sha256=" in found["corpus"]
    # Windows of 20: 19, 18 and 17 targets.
    assert results[0]["density"] == 1.0
    assert results[1]["density"] == results[1]["trained_density"] == pytest.approx(54 / 19)
    # One trunk per seed, whatever stands on it: before the heads have done much, the losses are alike.
    assert results[0]["curve"][0]["loss"] == pytest.approx(results[1]["curve"][0]["loss"], abs=0.01)
    summary = study.summarize(results)
    assert summary.figure is not None
    assert summary.figure.startswith(PNG)
    monkeypatch.setattr(corpus, "load_corpus", None)
    study.prepare(tmp_path, nobody)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variants": {"mtp": {"depth": 2}}}, r"variants of depth 1 are \[\]; there must be one"),
        ({"variants": VARIANTS | {"again": {"depth": 1}}}, r"variants of depth 1 are \['next_token', 'again'\]"),
        ({"variants": {"a": {"head": "latent"}}}, r"variants\.a is given as \['head'\]; it takes the keys"),
        ({"variants": {"a": {"depth": 1, "steps": 3}}}, r"variants\.a is given as \['depth', 'steps'\]"),
        ({"eval_every": 9, "num_steps": 8}, "eval_every=9 and num_steps=8 give a curve of fewer than 5 points"),
        (
            {"planted_occurrences": 1},
            "planted_occurrences=1 must be 0, or 2 to 32: as many as windows of window_tokens=128 hold",
        ),
        ({"planted_occurrences": 33}, "planted_occurrences=33 must be 0, or 2 to 32"),
        ({"eval_every": 0}, "eval_every=0 and num_steps=800 give a curve"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(ValueError, match=message):
        DensificationConfig(**({"variants": VARIANTS} | values))


IDS = torch.zeros((2, 4), dtype=torch.long)
ALL = torch.ones((2, 4), dtype=torch.bool)


def test_supervision_density_by_hand():
    # Four tokens: 3, 2 and 1 targets at depths 1, 2 and 3; six for three where nominally it is nine.
    assert supervision_density(depth_targets(IDS, ALL, 3)) == 2.0
    # Three real tokens (2, 1, 0 targets), and two documents of two (1 + 1, 0, 0): five for four.
    real = torch.tensor([[True, True, True, False], [True] * 4])
    documents = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])
    assert supervision_density(depth_targets(IDS, real, 3, document_ids=documents)) == 5 / 4
    assert supervision_density(depth_targets(IDS, ALL, 1)) == 1.0
    empty = DepthTargets(torch.zeros((1, 2, 2), dtype=torch.long), torch.zeros((1, 2, 2), dtype=torch.bool))
    with pytest.raises(ValueError, match="no text has a target at depth 1; check labels and masks"):
        supervision_density(empty)
