"""Heads compared: the table by hand, and a whole small study."""

import json
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from worldmtp.studies import corpus
from worldmtp.studies.corpus import load_corpus
from worldmtp.studies.head_families import HeadFamilies, HeadFamiliesConfig, summarize_heads
from worldmtp.studies.protocol import Study

PNG = b"\x89PNG\r\n\x1a\n"
TINY = {
    "seeds": [0, 1],
    "depth": 3,
    "num_parameters": 20_000,
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_layers": 1,
    "window_tokens": 12,
    "batch_size": 2,
    "trunk_steps": 2,
    "head_steps": 3,
    "num_texts": 3,
    "prompt_tokens": 4,
    "written_tokens": 6,
}


def result(variant: str, seed: int, greedy: list[list[float]], kind: str = "action_conditional") -> dict[str, Any]:
    acceptance = {"greedy": greedy, "sampled": [[0.5, 0.25]] * 2, "held_out": [[0.0, 0.0]] * 2}
    return {
        "variant": variant,
        "seed": seed,
        "kind": kind,
        "num_parameters": 1_250_000,
        "files": [4, 7],
        "acceptance": acceptance,
    }


def test_table_by_hand():
    # "weak": 0.4 and 0.1, tau 1.5. "strong", two seeds of two texts: depth 2 (1 + 0.6 + 0.8 + 0.4) / 4 = 0.7, depth 3
    # (0.5 + 0.3 + 0.5 + 0.1) / 4 = 0.35, half of it; tau 2.05.
    results = [
        result("weak", 0, [[0.4, 0.1], [0.4, 0.1]], "parallel"),
        result("strong", 0, [[1.0, 0.5], [0.6, 0.3]]),
        result("strong", 1, [[0.8, 0.5], [0.4, 0.1]]),
    ]
    summary = summarize_heads(results, "On nothing.")
    assert summary.headline == pytest.approx(2.05)
    assert summary.figure is not None
    assert summary.figure.startswith(PNG)
    lines = summary.markdown.splitlines()
    assert lines[2] == "| variant | kind | parameters | depth 2 | depth 3 | tau |"
    assert lines[4].startswith("| strong | action_conditional | 1.25 M | 0.700 (0.700) | 0.350 (0.500) | 2.050 [")
    assert lines[5].startswith("| weak | parallel | 1.25 M | 0.400 (0.400) | 0.100 (0.250) | 1.500 [1.500, 1.500]")
    assert "| 0.500 (0.500) | 0.250 (0.500) | 1.750 [1.750, 1.750] |" in summary.markdown
    assert "| 0.000 (0.000) | 0 | 1.000 [1.000, 1.000] |" in summary.markdown
    assert lines[-1] == "2 seed(s) of the heads on one trunk, 2 texts from 2 files. On nothing."


def test_files_are_what_is_resampled_and_texts_what_is_compared():
    # Three texts, two of one file: tau 1.4 and 1.2 (file 4) and 1.9 (file 7); their mean is 4.5 / 3 = 1.5. A difference
    # that is the same for every text has no width, whatever the texts themselves differ by.
    first = result("first", 0, [[0.4], [0.2], [0.9]]) | {"files": [4, 4, 7]}
    second = result("second", 0, [[0.3], [0.1], [0.8]]) | {"files": [4, 4, 7]}
    for found in (first, second):
        found["acceptance"] |= {"sampled": [[0.5]] * 3, "held_out": [[0.0]] * 3}
    lines = summarize_heads([first, second], "", compare_with="second").markdown.splitlines()
    assert lines[2] == "| variant | kind | parameters | depth 2 | tau | tau less that of second |"
    # Jackknife over the two files: without 7, 1.3; without 4, 1.9. Half their distance is the standard error 0.3, times
    # t(0.95, 1) = 6.314.
    assert (
        lines[4]
        == "| first | action_conditional | 1.25 M | 0.500 (0.500) | 1.500 [-0.394, 3.394] | 0.100 [0.100, 0.100] |"
    )
    assert lines[5].endswith("| 1.400 [-0.494, 3.294] |  |")


def test_a_whole_study(tmp_path, monkeypatch, nobody, global_rng_untouched):
    monkeypatch.setattr(corpus, "load_corpus", partial(load_corpus, max_files=20))
    variants = {"latent": {"head": "latent"}, "kl": {"head": "linear", "objective": {"terms": {"kl": 1.0}}}}
    study = pickle.loads(pickle.dumps(HeadFamilies(HeadFamiliesConfig(variants=variants, **TINY))))
    assert isinstance(study, Study)
    assert [arm.label for arm in study.arms()] == ["latent_seed0", "kl_seed0", "latent_seed1", "kl_seed1"]
    with global_rng_untouched():
        study.prepare(tmp_path, nobody)
        results = [json.loads(json.dumps(study.run_arm(arm, tmp_path, nobody))) for arm in study.arms()]
    assert all(len(found["files"]) == 3 and "sha256=" in found["corpus"] for found in results)
    assert "sha256=" in json.loads((tmp_path / "corpus.json").read_text())["fingerprint"]
    for found in results:
        for rows in found["acceptance"].values():
            assert [len(row) for row in rows] == [2, 2, 2]
            assert all(0 <= share <= 1 + 1e-5 for row in rows for share in row)
        assert all(first >= second for first, second in found["acceptance"]["greedy"])
    assert results[0]["kind"] == "action_conditional"
    assert results[1]["kind"] == "parallel"
    assert results[0]["num_parameters"] <= 20_000
    summary = study.summarize(results)
    assert 1 <= summary.headline <= 3
    assert summary.figure is not None
    assert summary.figure.startswith(PNG)
    # The texts are the prompts of held-out text and what the saved trunk writes after them.
    texts = torch.load(tmp_path / "texts.pt", weights_only=True)
    prompts = texts["held_out"][:, :4]
    assert torch.equal(prompts, texts["greedy"][:, :4])
    trunk = AutoModelForCausalLM.from_pretrained(tmp_path / "trunk")
    with torch.no_grad():
        assert torch.equal(trunk(texts["greedy"]).logits[:, 3:-1].argmax(dim=-1), texts["greedy"][:, 4:])
    # Prepared is prepared.
    monkeypatch.setattr(corpus, "load_corpus", None)
    study.prepare(tmp_path, nobody)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variants": {}}, "variants is empty; name at least one"),
        ({"seeds": []}, "seeds is empty"),
        (
            {"variants": {"a": {"depth": 2, "head": "latent"}}},
            r"variants\.a is given as \['depth', 'head'\]; it takes",
        ),
        ({"variants": {"a": {"spec": {}}}}, r"variants\.a is given as \['spec'\]"),
        ({"variants": {"a": {"head": "latnt"}}}, "did you mean 'latent'"),
        ({"variants": {"a": {"head": "latent", "objective": {"term": {}}}}}, "did you mean 'terms'"),
        ({"compare_with": "latnt"}, r"compare_with='latnt' is unknown; did you mean 'latent'"),
        ({"depth": 1}, r"variants\.latent has depth=1 and stride=1: acceptance is of the tokens 2, 3"),
        ({"variants": {"a": {"head": "linear", "spec": {"stride": 2}}}}, r"variants\.a has depth=3 and stride=2"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(ValueError, match=message):
        HeadFamiliesConfig(**({"variants": {"latent": {"head": "latent"}}, "depth": 3} | values))
