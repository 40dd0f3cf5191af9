"""A small model with a tokenizer, and the command that generates with it."""

import sys
from functools import partial

import pytest
import torch

from worldmtp.cli import generate as script
from worldmtp.envs import CharTokenizer
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training.saved_model import save_model, transformers_tokenizer

TOKENIZER = CharTokenizer("abcd=")  # ids 2 .. 6, behind padding 0 and EOS 1


@pytest.fixture(scope="module")
def model_of(tiny_trunk):
    """A float64 model with a vocabulary of 7 and, at depth 4, random heads that are right now and then."""

    def make(depth=4, seed=0, **config):
        trunk = tiny_trunk("llama", vocab_size=7, dtype=torch.float64, seed=seed)
        config = MTPConfig(head="sequential", depth=depth, initializer_range=0.3, **config)
        return MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(seed)).eval()

    return make


@pytest.fixture
def save(tmp_path):
    """Saves a model with its tokenizer: ``save(model, "runs/a/model")``."""

    def saved(model, name="model", tokenizer=TOKENIZER):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_model(model, tmp_path / name, transformers_tokenizer(tokenizer))
        return tmp_path / name

    return saved


@pytest.fixture
def command_line(monkeypatch, tmp_path, run_main):
    """Runs ``worldmtp generate`` in this process, in an empty directory; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return partial(run_main, script.main, "worldmtp generate")


@pytest.fixture
def stdin_of(monkeypatch, tmp_path):
    """Makes text the standard input, from a file, as ``< prompts.txt`` does."""
    opened = []

    def make(text):
        (tmp_path / "prompts.txt").write_text(text)
        opened.append((tmp_path / "prompts.txt").open())
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield make
    for stream in opened:
        stream.close()
