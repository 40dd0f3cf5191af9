"""A checkpoint in bfloat16 is trained in float32; what is computed in is a field of the config."""

import pytest
import torch
from safetensors.torch import load_file

from worldmtp.cli.train import run
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.precision import COMPUTE_DTYPES
from worldmtp.training.config import _COMPUTE_DTYPES, EnvConfig, ModelConfig
from worldmtp.training.make import make_env, make_model, make_trunk
from worldmtp.training.saved_model import load_model

pytestmark = pytest.mark.usefixtures("no_report")


def test_the_schema_knows_what_can_be_computed_in():
    assert tuple(COMPUTE_DTYPES) == _COMPUTE_DTYPES


def test_an_unknown_dtype_is_refused(compose_tiny, tmp_path):
    with pytest.raises(ValueError, match=r"model: compute_dtype='bf16' is unknown; did you mean 'bfloat16'"):
        run(compose_tiny("model.compute_dtype=bf16"), tmp_path)


@pytest.mark.parametrize("fresh", [False, True])
def test_every_trunk_has_float32_weights(fresh, tiny_trunk, tmp_path):
    env = make_env(EnvConfig("worldmtp/Reverse-v0"), 2)
    if fresh:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = ModelConfig("llama", None, sizes | {"dtype": "bfloat16"}, depth=2)
    else:
        saved = tiny_trunk("llama", vocab_size=13, dtype=torch.bfloat16)
        saved.save_pretrained(tmp_path)
        config = ModelConfig(None, str(tmp_path), {}, depth=2)
        trunk = make_trunk(config, env.tokenizer, 9, torch.Generator())
        for (name, kept), loaded in zip(saved.named_parameters(), trunk.parameters(), strict=True):
            assert torch.equal(kept.float(), loaded), name
    model = make_model(config, env, 0)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_warm_start_in_bfloat16_is_loaded_in_float32(tiny_trunk, tmp_path):
    model = MTPModel.from_trunk(tiny_trunk("llama", dtype=torch.bfloat16), MTPConfig(depth=2))
    model.save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_model(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_run_from_a_bfloat16_checkpoint(compute_dtype, compose_tiny, tiny_trunk, tmp_path, monkeypatch):
    """The warm start, acting, updating and evaluation compute as the field says; what is saved is float32."""
    tiny_trunk("llama", vocab_size=13, dtype=torch.bfloat16).save_pretrained(tmp_path / "trunk")
    computed: dict[str, set[torch.dtype]] = {}
    where = ["before"]

    def noted(name, place, original):
        def wrapped(*args, **kwargs):
            where[0], kept = name, where[0]
            try:
                return original(*args, **kwargs)
            finally:
                where[0] = kept

        monkeypatch.setattr(place, wrapped)

    from worldmtp.training import pipeline
    from worldmtp.training.make import make_model as plain

    def hooked(*args):
        model = plain(*args)
        model.trunk.model.layers[0].mlp.down_proj.register_forward_hook(
            lambda module, args, output: computed.setdefault(where[0], set()).add(output.dtype)
        )
        return model

    monkeypatch.setattr(pipeline, "make_model", hooked)
    stages = ("warm_start", "reinforce", "evaluate_run", "write_head_split")
    for name in stages:
        noted(name, f"worldmtp.training.pipeline.{name}", getattr(pipeline, name))
    overrides = ("model=pretrained", f"model.path={tmp_path / 'trunk'}", f"model.compute_dtype={compute_dtype}")
    run(compose_tiny(*overrides), tmp_path / "run")
    dtype = getattr(torch, compute_dtype)
    # What is inside the model is looked at before the first stage and behind evaluations.
    assert computed == {name: {dtype} for name in (*stages, "before")}
    for directory in ("sft/model", "model"):
        weights = load_file(tmp_path / "run" / directory / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
