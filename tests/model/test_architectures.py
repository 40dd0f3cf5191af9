"""Causal LMs of every kind that transformers has: heads and the attention probe work on one, or refuse it in words.

A kind is made with the smallest sizes that its config takes. Those that take none of the sizes tried are skipped, but
for the kinds that people train.
"""

import copy
import inspect
import traceback
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import worldmtp
from worldmtp.model import MTPModel
from worldmtp.model.attention_probe import attention_maps
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import backbone_of

MAX_PARAMETERS = 5_000_000
SIZES = {
    "vocab_size": 31, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEAD = {"head_dim": 8}
EXPERTS = {
    "num_experts": 2, "n_routed_experts": 2, "num_local_experts": 2, "moe_intermediate_size": 16,
    "num_experts_per_tok": 1, "moe_num_experts": 2, "n_shared_experts": 1, "intermediate_size_mlp": 32, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16, "moe_topk": 1,
}  # fmt: skip
OTHERS = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "d_head": 8,
    "d_model": 32, "decoder_layers": 2, "encoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "rotary_dim": 4,
}  # fmt: skip
LATENT = {"num_key_value_heads": 4}
TRIED = (
    SIZES | HEAD | EXPERTS | OTHERS,
    SIZES | EXPERTS | OTHERS | LATENT,
    SIZES | EXPERTS | OTHERS,
    SIZES | HEAD,
    SIZES,
)
USUAL = (
    "cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neox", "gpt_oss",
    "granite", "llama", "llama4_text", "mistral", "mixtral", "modernbert-decoder", "nanochat", "olmo2", "phi3", "qwen2",
    "qwen3", "qwen3_moe", "qwen3_next", "smollm3", "stablelm",
)  # fmt: skip
"""Kinds that may not be skipped."""
TOKENS = torch.tensor([[4, 9, 27, 3, 4, 9, 11, 30, 6], [7, 7, 22, 5, 19, 3, 8, 14, 28]])
QUERIES = torch.tensor([[8, 3], [7, 8]])


def tiny(kind):
    """A trunk of the smallest sizes that work, with its logits; None where none of those tried does."""
    config_class = CONFIG_MAPPING[kind]
    known = {*inspect.signature(config_class.__init__).parameters, *getattr(config_class, "attribute_map", {})}
    known |= set(getattr(config_class, "__dataclass_fields__", {}))
    for sizes in TRIED:
        try:
            config = config_class(**{name: size for name, size in sizes.items() if name in known})
            with torch.device("meta"):
                number = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
            if number > MAX_PARAMETERS:
                continue
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                trunk = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
                return trunk, trunk(TOKENS).logits
        except Exception:  # noqa: BLE001  # whatever a config of transformers says of sizes that do not fit it
            continue
    return None


def refusal(error):
    """The message, where our own code has raised it on purpose; another error is a defect."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = Path(frame.filename).is_relative_to(Path(worldmtp.__file__).parent)
    assert is_ours, f"{type(error).__name__} out of {frame.filename}:{frame.lineno}: {error}"
    assert (frame.line or "").startswith("raise"), f"{frame.filename}:{frame.lineno} failed: {error}"
    return str(error)


def eager_maps(trunk):
    slow = copy.deepcopy(trunk)
    slow.set_attn_implementation("eager")
    with torch.no_grad():
        whole = torch.stack(slow(TOKENS, output_attentions=True).attentions, dim=1)
    return whole[torch.arange(2)[:, None], :, :, QUERIES].permute(0, 2, 3, 1, 4)


def heads_on(kind):
    """Put heads on the kind, compare the logits, and return the message of a refusal."""
    trunk, logits = made(kind)
    try:
        model = MTPModel.from_trunk(trunk, MTPConfig(depth=2), torch.Generator().manual_seed(0)).eval()
    except (TypeError, ValueError) as error:
        return refusal(error)
    with torch.no_grad():
        output = model(TOKENS)
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
    assert output.depth_logits is not None
    return ""


def probed(kind):
    """Read the kind's attention, compare it with eager attention's, and return the message of a refusal."""
    trunk, _ = made(kind)
    try:
        found = attention_maps(trunk, TOKENS, QUERIES)
    except (RuntimeError, ValueError) as error:
        return refusal(error)
    torch.testing.assert_close(found, eager_maps(trunk), rtol=0, atol=1e-5)
    return ""


def made(kind):
    found = tiny(kind)
    if found is None:
        assert kind not in USUAL, f"{kind} cannot be made; give this test sizes for it"
        pytest.skip("no small model of this kind with the sizes tried")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
@pytest.mark.parametrize("use", [heads_on, probed])
def test_a_kind_works_or_is_refused_in_words(use, kind):
    message = use(kind)
    assert message == "" or "choose another trunk" in message


def test_llama_4_whose_class_names_no_backbone():
    trunk, _ = made("llama4_text")
    assert trunk.base_model is trunk  # what is special about it; if it changes, backbone_of is shorter
    assert backbone_of(trunk) is trunk.model
    assert heads_on("llama4_text") == ""
    assert probed("llama4_text") == ""
    with pytest.raises(ValueError, match=r"Llama4TextModel has no backbone apart from its LM head"):
        backbone_of(trunk.model)


@pytest.mark.parametrize("kind", ["bert", "modernbert-decoder", "electra"])
def test_layers_between_the_last_hidden_state_and_the_lm_head_are_refused(kind):
    assert "are not its LM head's output on the last hidden state" in heads_on(kind)


def test_what_a_config_does_not_say():
    assert heads_on("bloom") == ""  # no longest text
    assert heads_on("nanochat") == ""  # norms without weights
    assert "take their number of attention heads from the trunk, and mamba has none" in heads_on("mamba")
    eagle = MTPConfig(depth=2, head="eagle")
    assert MTPModel.from_trunk(made("bloom")[0], eagle)(TOKENS).depth_logits is not None
    with pytest.raises(ValueError, match="from the trunk, and mamba has none"):
        MTPModel.from_trunk(made("mamba")[0], eagle)


@pytest.mark.parametrize("kind", ["opt", "recurrent_gemma"])
def test_a_backbone_beside_the_one_that_its_class_calls_and_a_cap_of_another_name(kind):
    assert heads_on(kind) == ""


def lm_head_in_float32(trunk):
    trunk.to(torch.bfloat16).lm_head.float()
    return trunk


class Packed(torch.nn.Linear):
    """A linear layer whose weight is one column, as those are that are quantised."""

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.weight.reshape(self.out_features, self.in_features))


def packed(trunk):
    trunk.lm_head.__class__ = Packed
    trunk.lm_head.weight = torch.nn.Parameter(trunk.lm_head.weight.detach().reshape(-1, 1))
    return trunk


def overflowing(trunk):
    trunk.lm_head.weight.data *= 1e6
    return trunk.to(torch.float16)


@pytest.mark.parametrize("changed", [lm_head_in_float32, packed, overflowing])
def test_the_precision_of_an_lm_head_is_no_reason_to_refuse_it(changed):
    """One works inside autocast, one is one column of weights, one is not finite, which training says of it."""
    trunk, _ = made("llama")
    model = MTPModel.from_trunk(changed(trunk), MTPConfig(depth=2), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=changed is lm_head_in_float32):
        assert model(TOKENS).logits.shape == (2, 9, 31)


def test_a_trunk_that_returns_tuples_is_refused_in_words():
    trunk, _ = made("llama")
    trunk.config.return_dict = False
    with pytest.raises(ValueError, match="return_dict=False makes it return tuples"):
        MTPModel.from_trunk(trunk, MTPConfig(depth=2))


def test_the_check_draws_nothing(tiny_trunk):
    trunk = tiny_trunk("gpt2", vocab_size=31)
    for module in trunk.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    state = torch.get_rng_state()
    MTPModel.from_trunk(trunk.train(), MTPConfig(depth=2), torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert trunk.training
