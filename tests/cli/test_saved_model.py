"""Model directories are complete checkpoints: the environment's tokenizer stands beside the weights."""

import shlex
import sys

import pytest
import torch
from transformers import AutoTokenizer

from worldmtp.cli import __main__ as command
from worldmtp.cli.train import run
from worldmtp.envs import CharTokenizer, TransformersTokenizer
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training.saved_model import load_any_model, load_tokenizer, save_model, transformers_tokenizer

TEXTS = ["abc=", "<eos>", "a b\tc\n=", "  é"]


class Other:
    """A tokenizer of the user's own class."""

    vocab_size, pad_id, eos_id = 7, 0, 1

    def encode(self, text):
        return [2 + ord(character) % 5 for character in text]

    def decode(self, ids):
        return "".join(str(int(token)) for token in ids)

    def spec(self):
        return {"kind": "other"}


@pytest.fixture
def model(tiny_trunk):
    return MTPModel.from_trunk(tiny_trunk("llama", vocab_size=20), MTPConfig(depth=2))


def test_a_saved_tokenizer_gives_the_same_ids_and_texts(model, tmp_path):
    tokenizer = CharTokenizer("abc= <eos>\t\né")
    save_model(model, tmp_path / "model", transformers_tokenizer(tokenizer))
    loaded = load_tokenizer(tmp_path / "model")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert loaded.encode(text) == ids
        assert loaded.decode([0, *ids, 1], skip_special_tokens=True) == text
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)


def test_a_tokenizer_of_transformers_is_copied(model, tmp_path):
    CharTokenizer("abc=").to_transformers().save_pretrained(tmp_path / "elsewhere")
    tokenizer = TransformersTokenizer(str(tmp_path / "elsewhere"))
    save_model(model, tmp_path / "model", transformers_tokenizer(tokenizer))
    assert load_tokenizer(tmp_path / "model").encode("cab=") == [4, 2, 3, 5]


def test_a_tokenizer_of_another_class_is_not_saved_and_missed_with_a_message(model, tmp_path):
    assert transformers_tokenizer(Other()) is None
    save_model(model, tmp_path / "model", None)
    assert isinstance(load_any_model(tmp_path / "model"), MTPModel)
    with pytest.raises(ValueError, match=r"model has no tokenizer_config\.json, .*put the tokenizer's files there"):
        load_tokenizer(tmp_path / "model")


def test_damaged_weights(model, tmp_path):
    save_model(model, tmp_path / "model", None)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(
        ValueError, match=r"the model in .* cannot be read \(.*\); give a directory that save_pretrained"
    ):
        load_any_model(tmp_path / "model")


def test_a_save_that_is_interrupted_leaves_what_was_there(model, tmp_path, monkeypatch):
    save_model(model, tmp_path / "model", None)
    before = load_any_model(tmp_path / "model").get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)

    def killed(self, *args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MTPModel, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            save_model(model, tmp_path / "model", None)
    assert torch.equal(load_any_model(tmp_path / "model").get_input_embeddings().weight, before)
    save_model(model, tmp_path / "model", None)
    assert torch.equal(load_any_model(tmp_path / "model").get_input_embeddings().weight, before + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_tokenizer(model, tmp_path):
    save_model(model, tmp_path / "model", transformers_tokenizer(CharTokenizer("abc=")))
    (tmp_path / "model" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be read"):
        load_tokenizer(tmp_path / "model")


@pytest.mark.usefixtures("no_report")
def test_a_run_saves_its_tokenizer_with_both_models(compose_tiny, tmp_path):
    run(compose_tiny("agent.rollout.num_iterations=0"), tmp_path / "run")
    for name in ("sft/model", "model"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / name)
        # The reversal's alphabet is abcdefghij=, behind padding 0 and EOS 1.
        assert tokenizer.encode("cab=") == [4, 2, 3, 12]
        assert tokenizer.decode([12, 11, 1], skip_special_tokens=True) == "=j"


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("overrides", "closing"),
    [((), "✓ identical texts"), (("model.depth=1", "imagination=off"), None)],
    ids=["heads", "depth 1"],
)
def test_a_run_closes_with_a_command_that_works(compose_tiny, tmp_path, monkeypatch, capsys, overrides, closing):
    run(compose_tiny("agent.rollout.num_iterations=0", *overrides), tmp_path / "a run")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("generate: ")]
    monkeypatch.setattr(sys, "argv", shlex.split(line.removeprefix("generate: ")))
    command.main()
    *_, prompt = sys.argv
    assert (closing or prompt) in capsys.readouterr().out
    assert ("--explain" in line) == (closing is not None)


@pytest.mark.usefixtures("no_report")
def test_a_run_whose_tokenizer_cannot_be_saved_promises_no_talk(compose_tiny, tmp_path, monkeypatch, capsys):
    for user in ("pipeline", "closing"):
        monkeypatch.setattr(f"worldmtp.training.{user}.transformers_tokenizer", lambda tokenizer: None)
    run(compose_tiny("agent.rollout.num_iterations=0"), tmp_path / "run")
    out = capsys.readouterr().out
    assert "tensorboard: " in out
    assert "generate: " not in out
