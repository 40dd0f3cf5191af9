"""What a config gets wrong is said before anything is trained, and nothing that was there is lost."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Qwen2Config

from worldmtp.cli.train import run
from worldmtp.envs import CharTokenizer, Score, TextGenVectorEnv
from worldmtp.envs.tasks.strings import Copy
from worldmtp.interchange import export_checkpoint
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training.config import EnvConfig
from worldmtp.training.make import check_scores, make_env
from worldmtp.training.saved_model import save_model, transformers_tokenizer

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def refused(compose_tiny, tmp_path, monkeypatch):
    """Asserts that a run is refused with a message, before its warm start."""

    def started(*args, **kwargs):
        raise AssertionError("the warm start has begun")

    def check(message, *overrides):
        monkeypatch.setattr(sys, "path", sys.path[:])  # imports put directories there
        monkeypatch.setattr("worldmtp.training.pipeline.warm_start", started)
        with pytest.raises(ValueError, match=message):
            run(compose_tiny(*overrides), tmp_path / "run")
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
        assert not (tmp_path / "run" / "sft").exists()

    return check


HORIZON = (
    r"imagination\.horizon=9 exceeds the 3 steps that world_model=%s can take with model\.depth=4; lower "
    r"imagination\.horizon, or raise model\.depth to 10"
)  # of depth 4: depth 1 is the state itself, the other three are one step each
REFUSED = [
    (r"env\.id='worldmtp/ChainSm-v0' cannot be made: .*Did you mean: `ChainSum`", "env.id=worldmtp/ChainSm-v0"),
    (r"env\.id='no_such_module:My-v0' cannot be made: No module named", "env.id=no_such_module:My-v0"),
    (r"env\.id='CartPole-v1' cannot be made with .*Training needs a TextGenVectorEnv", "env.id=CartPole-v1"),
    (r"cannot be made with \{.*unexpected keyword argument 'max_nwe'", "+env.kwargs.max_nwe=3"),
    (r"imports='no_such_module' cannot be imported: .*no_such_", "imports=[no_such_module]"),
    (r"imports='./no_such_file.py' cannot be imported: .*no_such_", "imports=[./no_such_file.py]"),
    (
        r"has no held-out prompt, and eval\.num_prompts=8 asks for some; .* \+\+env\.kwargs\.heldout_fraction=0\.2 ",
        "+env.kwargs.heldout_fraction=0.0",
    ),
    ("imagination=latent is for answers without replies", "env=pig", "imagination=latent"),
    ("imagination=episodes is for worlds that reply, and nobody replies", "imagination=episodes"),
    (
        "completions=trunk is read by imagination=counterfactual alone, and imagination is off",
        "imagination=off",
        "imagination.completions=trunk",
    ),
    # Words of 3 to 8 letters, "=" behind the prompt and EOS behind the answer.
    (
        r"imagination=counterfactual would choose tokens where no mask is known, .*; set imagination=off\.$",
        "imagination=counterfactual",
        "env.wrappers=[action_mask]",
    ),
    (
        r"^agent\.rollout\.draft=mtp would choose tokens where no mask is known, .*; set agent\.rollout\.draft=none\.$",
        "imagination=off",
        "agent.rollout.draft=mtp",
        "env.wrappers=[action_mask]",
    ),
    # A world with a mask of legal moves, whose agent discounts: one refusal, and no word of the discount.
    (
        r"^imagination=counterfactual would .* set imagination=episodes or imagination=off\.$",
        "env=frozen_lake",
        "imagination=counterfactual",
    ),
    (
        r"^imagination\.completions=trunk is read by imagination=counterfactual alone, .*\.completions=none\.$",
        "env=guess_number",
        "imagination=episodes",
        "imagination.completions=trunk",
    ),
    ("draft='mpt' is unknown; did you mean 'mtp'", "agent.rollout.draft=mpt"),
    (
        r"takes 9 tokens, .*, but max_prompt=5; .* \+\+env\.kwargs\.max_prompt=9 ",
        "+env.kwargs.max_prompt=5",
    ),
    (r"tokens and EOS, .* but max_new=5; .* \+\+env\.kwargs\.max_new=9 ", "+env.kwargs.max_new=5"),
    ("the alphabet of the tokenizer lacks 'defghij', as in ", "+env.kwargs.tokenizer={kind: char, alphabet: 'abc='}"),
    ("model.architecture='qwn3' is no causal LM of transformers; did you mean 'qwen3'", "model.architecture=qwn3"),
    ("config.hiden_size is no field of Qwen3Config; did you mean 'hidden_size'", "+model.config.hiden_size=8"),
    # The trunk of the tests has 2 heads of keys and values.
    (
        r"model\.config\.num_attention_heads=3 must be a multiple of model\.config\.num_key_value_heads=2, .*; set b",
        "model.config.num_attention_heads=3",
    ),
    (r"wrappers=\[3\]: 3 is neither a name nor a mapping", "env.wrappers=[3]"),
    (r"no tokenizer at 'nothere'", "+env.kwargs.tokenizer=transformers:nothere"),
    ("give exactly one of them", "model.path=somewhere"),
    ("give exactly one of them", "model.architecture=null"),
    ("model.path='nowhere' is not a directory", "model=pretrained", "model.path=nowhere"),
    (r"model\.head=latnt with .*: head='latnt' is unknown; did you mean 'latent'\?", "model.head=latnt"),
    (r"model\.head_spec=\{'output_norm': 'mine'\}: output_norm='mine' is unknown", "model.head_spec.output_norm=mine"),
    (r"model\.head=sequential with .*head_width", "model.head_spec.head_width=8"),
    (r"stride=2 with head='sequential': a chain needs every token in between", "model.head_spec.stride=2"),
    # Depth k foresees t + 1 + 2 (k - 1): depth 2 the third token.
    (
        r"model\.head_spec\.stride=2: depth 2 foresees token t \+ 3, and what is imagined and evaluated goes token by",
        "head=medusa",
        "model.head_spec.stride=2",
    ),
    (r"world_model\.backend='mpt' is unknown; did you mean 'mtp'\?", "world_model.backend=mpt"),
    (HORIZON % "mtp", "imagination.horizon=9", "world_model=mtp"),
    (HORIZON % "shuffled", "imagination.horizon=9", "world_model=shuffled"),
    (r"world_model=mtp with imagination=counterfactual: head='medusa'", "head=medusa"),
    # Words of up to 8 letters, and EOS.
    (r"an answer may have 9 tokens, and of 4 at most these heads .* depth=9", "imagination.completions=heads"),
    (r"scores of .* cost money", "imagination.completions=trunk", "+env.kwargs.paid_scorer=true"),
    (
        r"world_model=mtp_parallel with imagination\.completions=heads: .* policy's average future",
        "imagination.completions=heads",
        "imagination.max_rung=0",
        "world_model=mtp_parallel",
        "head=medusa",
    ),
    (r"objective: depth_weighting='meen' is unknown; did you mean 'mean'", "objective.depth_weighting=meen"),
    (r"objective\.coef: coef\.kind='linear' goes from start to end; give", "objective.coef.kind=linear"),
    (r"objective: all terms are 0", "objective.terms.ce=0"),
    (r"objective: window 2 \.\. 4 reaches beyond", "objective.window.last=4", "model.depth=3", "imagination.horizon=2"),
    (r"objective\.frequency: frequency\.every_steps=0 .* at least 1", "objective.frequency.every_steps=0"),
    (r"objective: terms\.e2e_tv multiplies", "objective=bebop", "objective.frequency.one_random_depth=true"),
    ("sft.load='nowhere' is not a directory", "sft.load=nowhere"),
    ("profile.device='cpuu' is no device", "profile.device=cpuu"),
]


@pytest.mark.parametrize(("message", "overrides"), [(message, overrides) for message, *overrides in REFUSED])
def test_refused(refused, message, overrides):
    refused(message, *overrides)


REWARDS = """\
def five(example, text):
    return 5.0 if text == example.answer else 0.0

def minus(example, text):
    return -1.0
"""


@pytest.mark.parametrize(("reward", "paid"), [("five", "5"), ("minus", "-1")])
def test_rewards_that_values_cannot_hold(refused, tmp_path, reward, paid):
    (tmp_path / f"{reward}_rewards.py").write_text(REWARDS)
    rows = [json.dumps({"prompt": f"{number}=", "answer": str(number)}) for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    refused(
        rf"the answer '\d+' to '\d+=' is scored {paid}, and the model's values hold returns of 0 \.\. 1 .*; scale the",
        f"imports=[{tmp_path}/{reward}_rewards.py]",
        "env=data",
        f"env.kwargs.task_kwargs.path={tmp_path}/rows.jsonl",
        f"+env.kwargs.task_kwargs.reward={reward}_rewards:{reward}",
    )


def test_rewards_are_looked_at_before_the_warm_start_alone(monkeypatch):
    """Those in [0, 1], those that raise, and those under a time limit, which may hang, are not refused."""

    class Scored(Copy):
        def __init__(self, value):
            super().__init__()
            self.value, self.asked = value, 0

        def score(self, example, text, ids):
            self.asked += 1
            if self.value is None:
                raise ZeroDivisionError
            return Score(self.value, exact=False)

    for value in (0.0, 1.0, None):
        env = TextGenVectorEnv(1, task=Scored(value), max_prompt=9, max_new=9)
        check_scores(env, env.examples("train", 6, 0), (0.0, 1.0))
        assert env.task.asked == 4
    limited = TextGenVectorEnv(1, task=Scored(7.0), max_prompt=9, max_new=9, timeout_seconds=9.0)
    check_scores(limited, limited.examples("train", 6, 0), (0.0, 1.0))
    limited.close()


def test_vector_environment_of_another_kind(refused, monkeypatch):
    class Other:
        unwrapped = property(lambda self: self)

    monkeypatch.setattr("gymnasium.make_vec", lambda *args, **kwargs: Other())
    refused(r"env\.id='worldmtp/Reverse-v0' makes a Other\. Training needs a TextGenVectorEnv")


def test_file_with_the_name_of_a_module(refused, tmp_path):
    (tmp_path / "json.py").write_text("")
    refused("there is another module 'json', .*; rename the file", f"imports=[{tmp_path / 'json.py'}]")


def test_warm_start_that_is_no_model(refused, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    refused("the model in .* cannot be read", f"sft.load={tmp_path / 'model'}")


def test_device_that_is_not_there(refused):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    refused("profile.device='cuda', and torch sees no CUDA device; use profile=cpu", "profile=gpu")


def test_tokenizer_larger_than_the_vocabulary(refused, tiny_trunk, tmp_path):
    tiny_trunk("llama", vocab_size=7).save_pretrained(tmp_path / "small")
    # The built-in reversal has ten letters, "=", padding and EOS: 13 ids.
    refused(
        "the environment's tokenizer has 13 ids and the model a vocabulary of 7",
        "model=pretrained",
        f"model.path={tmp_path / 'small'}",
    )


def test_tokenizer_larger_than_the_vocabulary_of_a_loaded_warm_start(refused, tiny_trunk, tmp_path):
    from worldmtp.model.config import MTPConfig

    model = MTPModel.from_trunk(tiny_trunk("llama", vocab_size=7), MTPConfig(depth=4))
    model.save_pretrained(tmp_path / "small")
    refused("has 13 ids and the model a vocabulary of 7", f"sft.load={tmp_path / 'small'}")


def test_texts_longer_than_the_context(refused, tiny_trunk, tmp_path):
    tiny_trunk("llama", vocab_size=13).save_pretrained(tmp_path / "short")  # a context of 128
    refused(
        r"up to 209 tokens, max_prompt=9 and max_new=200, and the model a context of 128; lower max_new, as by "
        r"\+\+env\.kwargs\.max_new=119 ",
        "model=pretrained",
        f"model.path={tmp_path / 'short'}",
        "+env.kwargs.max_new=200",  # beside prompts of up to 9
    )


def test_a_saved_model_keeps_its_heads(compose_tiny, tiny_trunk, tmp_path, capsys):
    """As ``sft.load`` takes one: none of its weights is drawn anew. The warm start goes on from it."""
    heads = MTPConfig(head="parallel", depth=3)
    MTPModel.from_trunk(tiny_trunk("llama", vocab_size=13), heads).save_pretrained(tmp_path / "saved")
    chosen = ("model=pretrained", f"model.path={tmp_path / 'saved'}", "imagination=off", "sft.num_steps=0")
    run(compose_tiny(*chosen, "agent.rollout.num_iterations=0"), tmp_path / "run")
    start, end = (load_file(path / "model.safetensors") for path in (tmp_path / "saved", tmp_path / "run" / "model"))
    assert start.keys() == end.keys()
    assert all(torch.equal(start[name], end[name]) for name in start)
    note = "note: model.path=.*saved: a saved MTPModel, taken with its own heads .head=parallel, depth=3.; model.head, "
    assert re.search(note, capsys.readouterr().err)
    run(compose_tiny(*chosen[:3]), tmp_path / "warm")
    assert MTPModel.from_pretrained(tmp_path / "warm" / "sft" / "model").config.depth == 3


@pytest.fixture
def saved(tiny_trunk, tmp_path):
    """Make a saved model of 13 ids, with the tokenizer of an alphabet beside it."""

    def make(alphabet):
        model = MTPModel.from_trunk(tiny_trunk("llama", vocab_size=13), MTPConfig(head="parallel", depth=3))
        save_model(model, tmp_path / "saved", transformers_tokenizer(CharTokenizer(alphabet)))
        return tmp_path / "saved"

    return make


@pytest.mark.parametrize("option", ["model.path", "sft.load"])
def test_a_checkpoint_that_reads_other_texts_than_the_environment_writes_is_refused(refused, saved, option):
    """Reverse writes in abcdefghij=, whose first two letters have changed places here, after pad and EOS."""
    path = saved("bacdefghij=")
    message = (
        rf"^{option}=.*saved has a tokenizer of its own, in which 2 of the environment's 11 tokens are others: id 2 is "
        rf"'b' there and 'a' in the environment\. .*: \+\+env\.kwargs\.tokenizer=transformers:{path} \(worldmtp train\)"
    )
    refused(message, *(["model=pretrained"] if option == "model.path" else []), f"{option}={path}")


@pytest.mark.parametrize("how", ["same", "more", "fewer", "pasted", "none"])
def test_a_checkpoint_of_compatible_tokens_is_taken(compose_tiny, saved, tmp_path, how):
    """The same tokens, some behind them or one less, its own by the setting that the refusal gives, or none told."""
    path = saved({"same": "abcdefghij=", "more": "abcdefghij=x", "fewer": "abcdefghij"}.get(how, "=abcdefghij"))
    if how == "none":
        (path / "tokenizer_config.json").unlink()
    chosen = ["model=pretrained", f"model.path={path}", "imagination=off", "sft.num_steps=0"]
    if how == "pasted":
        chosen.append(f"++env.kwargs.tokenizer=transformers:{path}")
    run(compose_tiny(*chosen, "agent.rollout.num_iterations=0"), tmp_path / "run")
    assert (tmp_path / "run" / "DONE").is_file()


SIZES = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def published(trunk_config, layout, directory):
    """A release in bfloat16: trunk and one module of heads in a published layout. Returns the weights of the heads."""
    with torch.random.fork_rng(devices=[]):
        trunk = AutoModelForCausalLM.from_config(trunk_config, dtype=torch.bfloat16)
    order = {"concat_order": "hidden_first"} if layout == "mimo" else {}
    heads = MTPConfig(head="sequential", depth=2, head_block="trunk", **order)
    model = MTPModel.from_trunk(trunk, heads, torch.Generator().manual_seed(5))
    export_checkpoint(model, directory, layout)
    return {name: weight.float() for name, weight in model.heads.state_dict().items()}


def test_a_release_keeps_its_heads(compose_tiny, tmp_path, capsys):
    """And is not given fresh ones of ``model.depth``."""
    experts = {"moe_intermediate_size": 8, "n_routed_experts": 2, "num_experts_per_tok": 1, "first_k_dense_replace": 1}
    heads = published(Glm4MoeConfig(**SIZES, **experts, head_dim=8), "glm4_moe", tmp_path / "release")
    chosen = ("model=pretrained", f"model.path={tmp_path / 'release'}", "imagination=off", "sft.num_steps=0")
    run(compose_tiny(*chosen, "agent.rollout.num_iterations=0"), tmp_path / "run")
    trained = MTPModel.from_pretrained(tmp_path / "run" / "model")
    found = trained.heads.state_dict()
    assert found.keys() == heads.keys()
    assert all(torch.equal(found[name], heads[name]) for name in heads)
    assert {weight.dtype for weight in trained.state_dict().values() if weight.is_floating_point()} == {torch.float32}
    note = "note: model.path=.*release: a published checkpoint, taken with its own heads .head=sequential, depth=2.; "
    assert re.search(note, capsys.readouterr().err)


def test_a_release_that_does_not_say_how_its_heads_read_is_refused(refused, tmp_path):
    published(Qwen2Config(**SIZES), "mimo", tmp_path / "release")
    refused(
        r"layout 'mimo', whose hidden_stage cannot be told .*import_checkpoint\(path, hidden_stage=\.\.\.\)",
        "model=pretrained",
        f"model.path={tmp_path / 'release'}",
    )


def test_a_damaged_saved_model_is_named(refused, tiny_trunk, tmp_path):
    MTPModel.from_trunk(tiny_trunk("llama", vocab_size=13), MTPConfig(depth=2)).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"no weights")
    refused(
        r"the model in .*saved cannot be read: .* Give another model\.path than '.*saved'\.",
        "model=pretrained",
        f"model.path={tmp_path / 'saved'}",
    )


@pytest.mark.parametrize("imagination", ["off", "counterfactual"])
def test_a_trunk_with_padded_embeddings_is_trained(compose_tiny, tiny_trunk, tmp_path, no_report, imagination):
    """Of its 32 ids the environment's tokenizer has 13. The padded ones are the likeliest: none may ever be taken."""
    trunk = tiny_trunk("llama", vocab_size=32)
    with torch.no_grad():
        trunk.lm_head.weight[13:26] = 100 * trunk.lm_head.weight[:13]
    trunk.save_pretrained(tmp_path / "trunk")
    chosen = ("model=pretrained", f"model.path={tmp_path / 'trunk'}", f"imagination={imagination}", "sft.num_steps=0")
    run(compose_tiny(*chosen), tmp_path / "run")
    model = MTPModel.from_pretrained(tmp_path / "run" / "model")
    assert model.trunk.config.vocab_size == 32  # the checkpoint's own, as it came
    arrays = [np.load(path) for path in sorted((tmp_path / "run" / "artefacts").glob("*.npz"))]
    assert len(arrays) == 2
    for array in arrays:
        assert int(array["input_ids"].max()) < 13
        assert int(array["head_top1"].max()) < 13


def test_pretrained_trunk_that_fits_is_trained(compose_tiny, tiny_trunk, tmp_path):
    tiny_trunk("gpt_neox", vocab_size=13).save_pretrained(tmp_path / "trunk")
    run(compose_tiny("model=pretrained", f"model.path={tmp_path / 'trunk'}"), tmp_path / "run")
    assert MTPModel.from_pretrained(tmp_path / "run" / "model").trunk.config.model_type == "gpt_neox"


def test_directory_below_a_file(compose_tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the run directory .* cannot be written .*choose another"):
        run(compose_tiny(), tmp_path / "file" / "run")


def test_directory_of_another_run(compose_tiny, tmp_path):
    run_dir = tmp_path / "run"
    run(compose_tiny("sft.num_steps=0", "agent.rollout.num_iterations=0"), run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"already holds a run with another config\. Go on with that one by resume="):
        run(compose_tiny("seed=1"), run_dir)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_made_environment_has_its_rows():
    env = make_env(EnvConfig("worldmtp/Reverse-v0", {"max_new": 7}), 3)
    assert (env.num_envs, env.dataset.max_new) == (3, 7)
