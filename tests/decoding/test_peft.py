"""Models inside PEFT's wrapper: decoded with the adapters that are active, as transformers' own generation does."""

import peft
import pytest
import torch

from worldmtp.decoding import generate, parallel_beam
from worldmtp.decoding.explain import explain

PROMPTS = torch.tensor([[2, 3, 4], [5, 6, 2]])


@pytest.fixture
def wrapped(tiny_trunk):
    """Two adapters, "default" and "other", which both change the texts."""
    trunk = tiny_trunk("llama", vocab_size=7, dtype=torch.float64)
    config = peft.LoraConfig(
        r=2, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(trunk, config, autocast_adapter_dtype=False)
        model.add_adapter("other", config)
    return model.double().eval()


def text_of(model):
    return model.generate(
        input_ids=PROMPTS, attention_mask=torch.ones_like(PROMPTS), max_new_tokens=8, do_sample=False, eos_token_id=None
    ).tolist()


def test_active_adapters_are_decoded_with(wrapped):
    seen = []
    for adapter in ("default", "other"):
        wrapped.set_adapter(adapter)
        seen.append(text_of(wrapped))
        assert generate(wrapped, PROMPTS, max_new_tokens=8, draft="none").sequences.tolist() == seen[-1]
    with wrapped.disable_adapter():
        seen.append(text_of(wrapped))
        assert generate(wrapped, PROMPTS, max_new_tokens=8, draft="lookup").sequences.tolist() == seen[-1]
    assert seen[0] != seen[1] != seen[2] != seen[0]
    beams = parallel_beam(wrapped, PROMPTS, widths=(1,), max_new_tokens=8)
    explained = explain(wrapped, PROMPTS[1], max_new_tokens=8, draft="none")
    assert beams.sequences.tolist() == seen[1]
    assert [*explained.prompt, *explained.new_tokens] == seen[1][1]


def test_a_wrapped_model_drafts_with_its_adapters(wrapped, model_of):
    model = model_of()
    plain = generate(model, PROMPTS, max_new_tokens=8, draft="none")
    found = generate(model, PROMPTS, max_new_tokens=8, draft=wrapped)
    assert found.sequences.tolist() == plain.sequences.tolist()
    # The wrapped model drafts its own text exactly where it is the model too.
    own = generate(wrapped, PROMPTS, max_new_tokens=8, draft=wrapped)
    assert own.accepted_per_depth.tolist() == own.drafted_per_depth.tolist()
    assert own.sequences.tolist() == text_of(wrapped)


def test_learnt_prompts_are_refused(tiny_trunk, model_of):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    wrapped = peft.get_peft_model(tiny_trunk("llama", vocab_size=7), config)
    with pytest.raises(ValueError, match="PROMPT_TUNING does more than the layers inside it"):
        generate(wrapped, PROMPTS, max_new_tokens=2, draft="none")
    with pytest.raises(ValueError, match="PROMPT_TUNING does more than the layers inside it"):
        generate(model_of(), PROMPTS, max_new_tokens=2, draft=wrapped)
