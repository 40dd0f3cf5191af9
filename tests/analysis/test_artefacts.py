"""The artefact on disk: round trip, and errors that name file and field."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from worldmtp.analysis import ArtefactError, artefact_names, load_artefact, save_artefact
from worldmtp.analysis.artefacts import imagined_strip


def test_round_trip(tmp_path, make_artefact, marginal_heads):
    artefact = make_artefact(marginal_heads, tokens_text=("<eos>", "é\n"), imagined_horizon=5)
    path = save_artefact(artefact, tmp_path / "artefacts", "ppo")
    assert path.name == "ppo.json"
    assert artefact_names(tmp_path / "artefacts") == ["ppo"]
    loaded = load_artefact(tmp_path / "artefacts", "ppo")
    for field in dataclasses.fields(artefact):
        before, after = getattr(artefact, field.name), getattr(loaded, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            assert np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
        else:
            assert before == after


def test_damage_is_named(tmp_path, make_artefact):
    save_artefact(make_artefact([None]), tmp_path, "ppo")
    npz, header = tmp_path / "ppo.npz", tmp_path / "ppo.json"
    content, text = npz.read_bytes(), header.read_text()
    npz.write_bytes(content[:-20])
    with pytest.raises(ArtefactError, match=rf"{re.escape(str(npz))} .*does not match the checksum"):
        load_artefact(tmp_path, "ppo")
    npz.unlink()
    with pytest.raises(ArtefactError, match=rf"No {re.escape(str(npz))}; an artefact is ppo.json and ppo.npz"):
        load_artefact(tmp_path, "ppo")
    assert artefact_names(tmp_path) == ["ppo"]
    npz.write_bytes(content)
    header.write_text(text[:-5])
    with pytest.raises(ArtefactError, match=r"ppo.json is not JSON"):
        load_artefact(tmp_path, "ppo")
    fields = json.loads(text)
    header.write_text(json.dumps({key: value for key, value in fields.items() if key != "imagined_horizon"}))
    with pytest.raises(ArtefactError, match=r"ppo.json lacks the field 'imagined_horizon'"):
        load_artefact(tmp_path, "ppo")
    header.write_text(json.dumps({**fields, "format_version": 99}))
    with pytest.raises(ArtefactError, match=r"has the format_version 99; this version of worldmtp reads 2"):
        load_artefact(tmp_path, "ppo")


def test_another_version_is_named_though_it_had_other_fields(tmp_path, make_artefact):
    save_artefact(make_artefact([None]), tmp_path, "ppo")
    (tmp_path / "ppo.json").write_text(json.dumps({"format_version": 1, "checksum": ""}))
    with pytest.raises(ArtefactError, match=r"has the format_version 1; this version of worldmtp reads 2"):
        load_artefact(tmp_path, "ppo")


def test_a_file_without_arrays_is_named_though_its_checksum_is_right(tmp_path, make_artefact):
    path = save_artefact(make_artefact([None]), tmp_path, "ppo")
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04 and no more")
    digest = hashlib.sha256(path.with_suffix(".npz").read_bytes()).hexdigest()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": digest}))
    with pytest.raises(ArtefactError, match=r"ppo\.npz cannot be read \(.*\); run the evaluation again"):
        load_artefact(tmp_path, "ppo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("head_entropy"), "ppo.npz lacks the field 'head_entropy'"),
        (
            lambda arrays: arrays.update(returns=arrays["returns"][:-1]),
            r"ppo.npz does not hold .*returns has shape \(127,\); input_ids and head_logprob ask for \(128,\)",
        ),
        (lambda arrays: arrays.update(head_logprob=arrays["chain_logprob"]), r"head_logprob \(128, 4\); expected"),
        (lambda arrays: arrays.update(prompt_length=arrays["prompt_length"] + 9), r"prompt_length leaves 0..4"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, make_artefact, change, message):
    save_artefact(make_artefact([None]), tmp_path, "ppo")
    npz, header = tmp_path / "ppo.npz", tmp_path / "ppo.json"
    with np.load(npz) as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    np.savez(npz, **arrays)
    fields = json.loads(header.read_text())
    header.write_text(json.dumps({**fields, "sha256": hashlib.sha256(npz.read_bytes()).hexdigest()}))
    with pytest.raises(ArtefactError, match=message):
        load_artefact(tmp_path, "ppo")


def test_invalid_content_is_refused(make_artefact, marginal_heads):
    good = make_artefact(marginal_heads)
    with pytest.raises(ValueError, match="input_ids runs from 0 to 1 but tokens_text has 1 entries"):
        dataclasses.replace(good, tokens_text=("a",))
    with pytest.raises(ValueError, match="action_mask marks tokens outside attention_mask"):
        dataclasses.replace(good, attention_mask=np.zeros_like(good.attention_mask))
    with pytest.raises(ValueError, match="head_logprob has infinite or positive entries"):
        dataclasses.replace(good, head_logprob=-good.head_logprob)
    with pytest.raises(ValueError, match="chain_logprob is NaN at policy tokens"):
        dataclasses.replace(good, chain_logprob=np.full_like(good.chain_logprob, np.nan))
    with pytest.raises(ValueError, match="chain_entropy is NaN at policy tokens"):
        dataclasses.replace(good, chain_entropy=np.full_like(good.chain_entropy, np.nan))
    with pytest.raises(ValueError, match="head_top1_prob is NaN where head_logprob is not"):
        dataclasses.replace(good, head_top1_prob=np.full_like(good.head_top1_prob, np.nan))
    with pytest.raises(ValueError, match=r"head_top1 leaves 0\.\.1, the ids of tokens_text"):
        dataclasses.replace(good, head_top1=good.head_top1 + 2)
    with pytest.raises(ValueError, match="rewards are not 0 at tokens that the policy did not choose"):
        dataclasses.replace(good, rewards=np.roll(good.rewards, 1, axis=1))
    with pytest.raises(ValueError, match="rewards do not add up to returns"):
        dataclasses.replace(good, rewards=good.rewards / 2)
    with pytest.raises(ValueError, match=r"prompt_length leaves 0..4"):
        dataclasses.replace(good, prompt_length=good.prompt_length + 9)


def test_an_imagined_strip_places_steps_after_their_root(make_artefact):
    """Imagined after the prompt's one token: "b", "a" at places 1 and 2; from the end of the text nothing fits."""
    tokens = np.zeros((128, 4, 2), dtype=np.int64)
    probabilities = np.full((128, 4, 2), np.nan)
    tokens[0, 0], probabilities[0, 0] = (1, 0), (0.9, 0.5)
    tokens[0, 3], probabilities[0, 3] = (1, 1), (0.9, 0.9)
    artefact = make_artefact([None], imagined_tokens=tokens, imagined_token_prob=probabilities)
    strip = imagined_strip(artefact, 0)
    assert [row.label for row in strip.rows] == ["after 0"]
    assert strip.rows[0].tokens == (None, "b", "a", None)
    assert strip.rows[0].probabilities == (0.0, 0.9, 0.5, 0.0)
