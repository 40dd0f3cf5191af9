"""``MTPConfig``: everything needed to rebuild a trunk, its heads and its world heads, and how far gradients go.

It is a Hugging Face config, so it is a mutable dataclass by inheritance; ``MTPModel.from_trunk`` works on a copy. The
trunk's own config is nested in it, so a checkpoint needs no second file.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from worldmtp.choices import check_choice
from worldmtp.interchange.layouts import find_layout

CONCAT_ORDERS = ("embedding_first", "hidden_first")
HIDDEN_STAGES = ("post_norm", "pre_norm")
HEAD_BLOCKS = ("auto", "trunk", "llama")
OUTPUT_NORMS = ("own", "shared", "none")
UNEMBEDDINGS = ("own", "shared")
HEAD_INITS = ("family", "random", "copy_trunk")
_CHOICES = {
    "concat_order": CONCAT_ORDERS,
    "hidden_stage": HIDDEN_STAGES,
    "recycle_stage": HIDDEN_STAGES,
    "output_norm": OUTPUT_NORMS,
    "unembedding": UNEMBEDDINGS,
    "head_block": HEAD_BLOCKS,
    "head_init": HEAD_INITS,
}


class MTPConfig(PreTrainedConfig):
    """Heads for depths 1 .. ``depth`` on a causal LM. Depth k predicts token t+k; depth 1 is the trunk's own LM head.

    Fields that default to None follow the family: its paper's choice is written into the config when heads are made,
    so that a saved one says all.

    Attributes:
        head: family of the heads; see ``worldmtp.heads.available_heads()``.
        depth: K. A paper's D additional modules are K = D + 1; DeepSeek-V3 has D = 1.
        share_depths: one set of weights for all depths 2 .. K, applied recursively (FastMTP, arXiv 2509.18362).
        stride: depth k predicts token t + 1 + stride (k - 1); more than 1 for parallel heads only (L-MTP, arXiv
            2505.17505).
        concat_order: which half of the head's input comes first. The released DeepSeek-V3 weights put the embedding
            first, whatever eq. 21 of the paper writes; MiMo-7B puts the hidden state first.
        hidden_stage: which hidden state of the trunk is read: ``"post_norm"`` is the one the LM head reads,
            ``"pre_norm"`` the one before the final norm. The wrong one costs acceptance in released models.
        recycle_stage: which one a depth hands to the next, of its own output norm.
        output_norm: the norm before the unembedding: each depth's ``"own"``, the trunk's final one (``"shared"``), or
            ``"none"``.
        unembedding: each depth's ``"own"``, or the trunk's LM head (``"shared"``).
        feature_layers: trunk layers whose outputs are read, for families that read any; -1 is the last.
        head_block: class of the heads' decoder layer: the trunk's own, a Llama layer of the trunk's width and head
            count, or ``"auto"``, which takes the trunk's where it can serve and is replaced by what it chose.
        head_width: inner width of the families made of MLPs.
        head_layers: their number of residual layers a depth.
        head_init: ``"family"`` is the paper's (zero residual branches, copies of the LM head), ``"random"`` draws all
            weights, ``"copy_trunk"`` also copies the trunk's last layer into the heads' decoder layers.
        detach_trunk: the losses of depths 2 .. K do not reach the trunk's hidden states.
        detach_embedding: nor the input embedding.
        detach_lm_head: nor the LM head.
        num_value_bins: bins of the reward and of the value distribution over their ranges. The distributions go as far
            below zero as above it, equally dense, so that untrained heads predict zero.
        value_range: lowest and highest return; (0, 1) is that of the environments' scores.
        reward_range: lowest and highest reward.
        initializer_range: standard deviation of the heads' initial weights.
        trunk_config: the trunk's config, or its ``to_dict()`` with ``model_type``.
        vocab_size: the trunk's.
        hidden_size: the trunk's.
        adapters: of a checkpoint whose trunk has some (``worldmtp.model.lora``): PEFT's configs by the adapters' names.
            ``MTPModel.save_pretrained`` writes it.
    """

    model_type = "worldmtp"
    # Hugging Face configs take keywords that are no fields; checkers of the dataclass's signature would refuse them.
    __no_type_check__ = True
    # TRL reads config.auto_map of every registered class when it builds reference models.
    auto_map: ClassVar[dict[str, str]] = {}
    sub_configs: ClassVar[dict[str, type]] = {"trunk_config": AutoConfig}

    head: str = "sequential"
    depth: int = 2
    share_depths: bool | None = None
    stride: int = 1
    concat_order: str = "embedding_first"
    hidden_stage: str = "post_norm"
    recycle_stage: str | None = None
    output_norm: str | None = None
    unembedding: str | None = None
    feature_layers: tuple[int, ...] | None = None
    head_block: str = "auto"
    head_width: int | None = None
    head_layers: int | None = None
    head_init: str = "family"
    detach_trunk: bool = False
    detach_embedding: bool = False
    detach_lm_head: bool = False
    num_value_bins: int = 21
    value_range: tuple[float, float] = (0.0, 1.0)
    reward_range: tuple[float, float] = (0.0, 1.0)
    initializer_range: float = 0.02
    trunk_config: PreTrainedConfig | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    adapters: dict[str, dict[str, Any]] | None = None

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
        for name, choices in _CHOICES.items():
            if getattr(self, name) is not None:  # left to the family
                check_choice(name, getattr(self, name), choices)
        if self.feature_layers is not None:
            self.feature_layers = tuple(self.feature_layers)
        for name in ("stride", "head_width", "head_layers"):
            _check_count(name, getattr(self, name))
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"depth={self.depth!r} must be an integer of at least 1; depth=1 is the trunk alone.")
        if self.num_value_bins < 2:
            raise ValueError(f"num_value_bins={self.num_value_bins} must be at least 2, one for each end of the range.")
        if not self.initializer_range > 0:
            raise ValueError(f"initializer_range={self.initializer_range} must be positive.")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a config as Hugging Face does, but refuse a plain trunk's or a published one's: it would be half read.

        Raises:
            ValueError: the config is another model's.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            layout = find_layout(config_dict)
            trunk_alone = (
                "load it with AutoModelForCausalLM.from_pretrained(path) and add heads with "
                "MTPModel.from_trunk(trunk, config)."
            )
            if layout is None:
                raise ValueError(f"this checkpoint is a plain {model_type!r} model without MTP heads; {trunk_alone}")
            raise ValueError(
                f"this checkpoint is a {model_type!r} model, whose releases have MTP heads in the layout "
                f"{layout.name!r}; load both with worldmtp.interchange.import_checkpoint(path). A trunk without heads: "
                f"{trunk_alone}"
            )
        return super().from_dict(config_dict, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the trunk's: it has the layers, caches and vocabulary that Hugging Face asks about."""
        if self.trunk_config is None:
            return self
        return self.trunk_config.get_text_config(decoder=decoder, encoder=encoder)

    @property
    def max_position_embeddings(self) -> int:
        """Return the trunk's: TRL's tool loop asks the model's own config how long a text may be."""
        config = self.get_text_config()
        if config is self:
            raise AttributeError("max_position_embeddings is the trunk's, and this config is bound to none.")
        longest: int = config.max_position_embeddings
        return longest

    @property
    def offsets(self) -> tuple[int, ...]:
        """Return how many tokens ahead each depth 1 .. K predicts."""
        return tuple(1 + self.stride * (depth - 1) for depth in range(1, self.depth + 1))


def _check_count(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")


def _check_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Return the range as a tuple; in JSON it is a list."""
    if len(value) != 2 or not value[0] < value[1]:
        raise ValueError(f"{name}={value} must be (lowest, highest) with lowest < highest.")
    return value[0], value[1]


AutoConfig.register(MTPConfig.model_type, MTPConfig, exist_ok=True)
