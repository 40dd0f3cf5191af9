"""Checkpoints in the published layouts, made by transformers' own classes.

They are named here by hand, as the releases are: nothing of ``worldmtp`` takes part.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)
from transformers.modeling_layers import MtpModel

VOCAB = 40
HIDDEN = 32
LAYERS = 4
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
LINEAR = {
    "head_dim": 8,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def tiny_config(layout: str, **changes) -> PreTrainedConfig:
    if layout == "deepseek_v3":
        return DeepseekV3Config(
            **SIZES | {"num_key_value_heads": 4} | changes,
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            kv_lora_rank=8,
            q_lora_rank=12,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
            first_k_dense_replace=1,
        )
    if layout == "glm4_moe":
        sparse = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
        return Glm4MoeConfig(**SIZES | sparse | {"first_k_dense_replace": 1} | changes, head_dim=8, use_qk_norm=True)
    if layout == "qwen3_next":
        return Qwen3NextConfig(
            **SIZES | LINEAR | changes,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            num_experts=4,
            num_experts_per_tok=2,
        )
    if layout == "qwen3_5":
        rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
        return Qwen3_5TextConfig(**SIZES | LINEAR | changes, rope_parameters=rope)
    assert layout == "mimo"
    return Qwen2Config(**SIZES | changes)


def scatter(module: torch.nn.Module, seed: int) -> None:
    """Weights far enough from their start that a swap of any two, or a norm left out, shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name:
                weight.add_(torch.rand(weight.shape, generator=generator) - 0.5)
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
        for name, buffer in module.named_buffers():
            if "e_score_correction_bias" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator))


def make_mtp(trunk: PreTrainedModel, num_modules: int, hidden_first: bool, seed: int) -> MtpModel:
    """The heads of transformers itself on the trunk, whose config stays as it was."""
    config = trunk.config
    trunk.config = copy.deepcopy(config)
    trunk.config.num_mtp_layers = num_modules
    trunk.config.mtp_layer_types = ["full_attention"] * num_modules
    trunk.config.mtp_hidden_states_first = hidden_first
    heads = MtpModel(trunk, num_modules).eval()
    trunk.config = config
    scatter(heads.layers, seed)
    return heads


def one_by_one(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Experts as they are published."""
    prefix, _, last = name.rpartition(".")
    if last == "gate_up_proj":
        inner = tensor.shape[1] // 2
        gates = {f"{prefix}.{e}.gate_proj.weight": tensor[e, :inner].clone() for e in range(len(tensor))}
        return gates | {f"{prefix}.{e}.up_proj.weight": tensor[e, inner:].clone() for e in range(len(tensor))}
    if last == "down_proj":
        return {f"{prefix}.{e}.down_proj.weight": tensor[e].clone() for e in range(len(tensor))}
    return {name: tensor.clone()}


def head_name(layout: str, name: str) -> str:
    """``layers.0.mtp_block.mlp.up_proj.weight`` of transformers' heads, as the release calls it."""
    _, number, rest = name.split(".", 2)
    module = int(number)
    if layout in ("deepseek_v3", "glm4_moe"):
        rest = rest.replace("post_norm", "shared_head.norm") if rest.startswith("post_norm") else rest
        return f"model.layers.{LAYERS + module}.{rest.removeprefix('mtp_block.')}"
    if rest.startswith("mtp_block."):
        folder = "model.mtp_layers" if layout == "mimo" else "mtp.layers"
        return f"{folder}.{module}.{rest.removeprefix('mtp_block.')}"
    if layout == "mimo":
        names = {"enorm": "token_layernorm", "hnorm": "hidden_layernorm", "eh_proj": "input_proj"}
        return f"model.mtp_layers.{module}.{(names | {'post_norm': 'final_layernorm'})[rest.split('.')[0]]}.weight"
    names = {"enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden", "eh_proj": "fc", "post_norm": "norm"}
    return f"mtp.{names[rest.split('.')[0]]}.weight"


@dataclass(frozen=True)
class Published:
    """A checkpoint on disk and what it was made of."""

    layout: str
    path: Path
    trunk: PreTrainedModel
    heads: MtpModel
    tensors: dict[str, Tensor]

    def rewrite(self, tensors: dict[str, Tensor]) -> None:
        save_file(tensors, self.path / "model.safetensors", {"format": "pt"})

    def edit_config(self, **changes) -> None:
        path = self.path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def head_logits(self, input_ids: Tensor) -> list[Tensor]:
        """Of depths 2, 3, ...; entry [:, t] of depth k predicts x_{t+k} and has read up to x_{t+k-1}."""
        stage = "pre_norm" if self.layout == "mimo" else "post_norm"
        seen: dict[str, Tensor] = {}
        norm = self.trunk.model.norm
        hook = norm.register_forward_hook(lambda _, args, output: seen.update(pre_norm=args[0], post_norm=output))
        with torch.no_grad():
            self.trunk.model(input_ids=input_ids)
            hook.remove()
            hidden, logits = seen[stage], []
            for module in range(len(self.heads.layers)):
                hidden = hidden[:, :-1]
                ahead = input_ids[:, module + 1 :]
                positions = torch.arange(1, ahead.shape[1] + 1).expand(ahead.shape)
                hidden = self.heads.forward_layer(module, hidden, positions, None, input_ids=ahead)
                logits.append(self.trunk.lm_head(hidden))
        return logits


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Published]:
    """Makes a checkpoint in a layout."""

    def make(layout: str, num_modules: int = 1, **changes) -> Published:
        trunk = AutoModelForCausalLM.from_config(tiny_config(layout, **changes)).eval()
        scatter(trunk, seed=1)
        heads = make_mtp(trunk, num_modules, hidden_first=layout == "mimo", seed=2)
        path = tmp_path / layout
        trunk.save_pretrained(path)
        tensors = load_file(path / "model.safetensors")
        for name, tensor in heads.layers.state_dict().items():
            tensors |= one_by_one(head_name(layout, f"layers.{name}"), tensor)
        for module in range(num_modules if layout in ("deepseek_v3", "glm4_moe") else 0):
            tensors[f"model.layers.{LAYERS + module}.embed_tokens.weight"] = (
                trunk.model.embed_tokens.weight.data.clone()
            )
            tensors[f"model.layers.{LAYERS + module}.shared_head.head.weight"] = trunk.lm_head.weight.data.clone()
        published = Published(layout, path, trunk, heads, tensors)
        published.rewrite(tensors)
        if layout in ("deepseek_v3", "glm4_moe"):
            published.edit_config(num_nextn_predict_layers=num_modules)
        if layout == "qwen3_5":
            published.edit_config(mtp_num_hidden_layers=num_modules)
        if layout == "mimo":
            mark = {"model_type": "mimo", "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": num_modules}
            published.edit_config(**mark, auto_map={"AutoConfig": "configuration_mimo.MiMoConfig"})
        return published

    return make


@pytest.fixture
def input_ids() -> Tensor:
    return torch.randint(VOCAB, (2, 11), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def make_tiny() -> Callable[..., PreTrainedModel]:
    """A trunk of a layout's class."""

    def make(layout: str, **changes) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(tiny_config(layout, **changes)).eval()

    return make
