"""``MTPConfig``: everything needed to rebuild a trunk, its heads and its world heads, and nothing about training runs.

It is a Hugging Face config, so it is a mutable dataclass by inheritance; ``MTPModel.from_trunk`` works on a copy. The
trunk's own config is nested in it, so a checkpoint needs no second file.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from worldmtp.heads.registry import check_head

CONCAT_ORDERS = ("embedding_first", "hidden_first")
HIDDEN_STAGES = ("post_norm",)
HEAD_BLOCKS = ("auto", "trunk", "llama")


class MTPConfig(PreTrainedConfig):
    """Heads for depths 1 .. ``depth`` on a causal LM. Depth k predicts token t+k; depth 1 is the trunk's own LM head.

    Attributes:
        head: family of the heads; see ``worldmtp.heads.available_heads()``.
        depth: K. A paper's D additional modules are K = D + 1; DeepSeek-V3 has D = 1.
        share_depths: one set of weights for all depths 2 .. K, applied recursively (FastMTP, arXiv 2509.18362).
        concat_order: which half of the head's input comes first. The released DeepSeek-V3 weights put the embedding
            first, whatever eq. 21 of the paper writes; MiMo-7B puts the hidden state first.
        hidden_stage: which hidden state is read and recycled; ``"post_norm"`` is the one the LM head reads.
        head_block: class of the heads' decoder layer: the trunk's own, a Llama layer of the trunk's width and head
            count, or ``"auto"``, which takes the trunk's where it can serve and is replaced by what it chose.
        detach_trunk: the losses of depths 2 .. K do not reach the trunk's hidden states.
        detach_embedding: nor the input embedding.
        detach_lm_head: nor the LM head.
        mtp_loss_coef: lambda of DeepSeek-V3 (arXiv 2412.19437, eq. 25, 0.3 for most of its training): weight of the
            mean of the depth 2 .. K losses beside the depth 1 loss.
        num_value_bins: bins of the reward and of the value distribution.
        value_range: first and last bin of the value.
        reward_range: first and last bin of the reward.
        initializer_range: standard deviation of the heads' initial weights.
        trunk_config: the trunk's config, or its ``to_dict()`` with ``model_type``.
        vocab_size: the trunk's.
        hidden_size: the trunk's.
    """

    model_type = "worldmtp"
    # Hugging Face configs take keywords that are no fields; checkers of the dataclass's signature would refuse them.
    __no_type_check__ = True
    # TRL reads config.auto_map of every registered class when it builds reference models.
    auto_map: ClassVar[dict[str, str]] = {}
    sub_configs: ClassVar[dict[str, type]] = {"trunk_config": AutoConfig}

    head: str = "sequential"
    depth: int = 2
    share_depths: bool = False
    concat_order: str = "embedding_first"
    hidden_stage: str = "post_norm"
    head_block: str = "auto"
    detach_trunk: bool = False
    detach_embedding: bool = False
    detach_lm_head: bool = False
    mtp_loss_coef: float = 0.3
    num_value_bins: int = 51
    value_range: tuple[float, float] = (-1.0, 1.0)
    reward_range: tuple[float, float] = (-1.0, 1.0)
    initializer_range: float = 0.02
    trunk_config: PreTrainedConfig | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        nested: Any = self.trunk_config  # a dict where it comes from a file
        if isinstance(nested, dict):
            if "model_type" not in nested:
                raise ValueError("trunk_config has no 'model_type'; pass trunk.config or trunk.config.to_dict().")
            self.trunk_config = AutoConfig.for_model(**nested)
        if self.trunk_config is not None:
            self.vocab_size = self.trunk_config.get_text_config().vocab_size
            self.hidden_size = self.trunk_config.get_text_config().hidden_size
        self.value_range = _check_range("value_range", self.value_range)
        self.reward_range = _check_range("reward_range", self.reward_range)
        check_head(self.head)
        _check_choice("concat_order", self.concat_order, CONCAT_ORDERS)
        _check_choice("hidden_stage", self.hidden_stage, HIDDEN_STAGES)
        _check_choice("head_block", self.head_block, HEAD_BLOCKS)
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"depth={self.depth!r} must be an integer of at least 1; depth=1 is the trunk alone.")
        if not self.mtp_loss_coef >= 0:
            raise ValueError(f"mtp_loss_coef={self.mtp_loss_coef} must not be negative; 0 turns the loss off.")
        if self.num_value_bins < 2:
            raise ValueError(f"num_value_bins={self.num_value_bins} must be at least 2, one for each end of the range.")
        if not self.initializer_range > 0:
            raise ValueError(f"initializer_range={self.initializer_range} must be positive.")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As Hugging Face's, but a plain trunk's config is refused instead of half read.

        Raises:
            ValueError: the config is another model's.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"this checkpoint is a plain {model_type!r} model without MTP heads; load it with "
                "AutoModelForCausalLM.from_pretrained(path) and add heads with MTPModel.from_trunk(trunk, config)."
            )
        return super().from_dict(config_dict, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The trunk's: it has the layers, caches and vocabulary that Hugging Face asks about."""
        if self.trunk_config is None:
            return self
        return self.trunk_config.get_text_config(decoder=decoder, encoder=encoder)

    def for_trunk(self, trunk_config: PreTrainedConfig, head_block: str) -> "MTPConfig":
        """A copy that describes these heads on that trunk."""
        bound = copy.deepcopy(self)
        bound.trunk_config = trunk_config
        bound.vocab_size = trunk_config.get_text_config().vocab_size
        bound.hidden_size = trunk_config.get_text_config().hidden_size
        bound.head_block = head_block
        return bound


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose from {list(choices)}.")


def _check_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """The range as a tuple; in JSON it is a list."""
    if len(value) != 2 or not value[0] < value[1]:
        raise ValueError(f"{name}={value} must be (lowest, highest) with lowest < highest.")
    return value[0], value[1]


AutoConfig.register(MTPConfig.model_type, MTPConfig, exist_ok=True)
