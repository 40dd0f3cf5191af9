"""Refusal of config fields that a family does not read: set and ignored, they would be saved as if they had counted.

Fields that None leaves to the family are used where they differ from what the family takes; the others where they
differ from the config's default. Left out: which values a field may have at all, which ``MTPConfig`` checks.
"""

from worldmtp.heads.base import FamilyDefaults
from worldmtp.model.config import MTPConfig

_UNUSED = {
    "concat_order": ("embedding_first", "nothing is concatenated"),
    "feature_layers": (FamilyDefaults.feature_layers, "it reads the trunk's last hidden state only"),
    "head_layers": (FamilyDefaults.head_layers, "it has no stack of layers"),
    "head_width": (FamilyDefaults.head_width, "it has no inner width to choose"),
    "recycle_stage": (FamilyDefaults.recycle_stage, "no depth hands anything to the next"),
}


def refuse_unused(config: MTPConfig, *names: str) -> None:
    """Whether the fields named are as a family without them leaves them.

    Raises:
        ValueError: one of them asks for something.
    """
    for name in names:
        neutral, reason = _UNUSED[name]
        if getattr(config, name) != neutral:
            raise ValueError(
                f"{name}={getattr(config, name)!r} with head={config.head!r}: {reason}; leave {name} out, or choose a "
                "family that reads it."
            )


def refuse_copied_layers(config: MTPConfig) -> None:
    """Whether heads without decoder layers are asked for copies of the trunk's.

    Raises:
        ValueError: they are.
    """
    if config.head_init == "copy_trunk":
        raise ValueError(
            f"head_init='copy_trunk' with head={config.head!r}: these heads have no decoder layer to copy the trunk's "
            "into; use head_init='family' or 'random'."
        )


def refuse_unnormed(config: MTPConfig) -> None:
    """Whether the trunk's LM head, or a copy of it, is to read states that no norm has seen.

    Raises:
        ValueError: it is.
    """
    reads_lm_head = config.unembedding == "shared" or config.head_init != "random"
    if config.hidden_stage == "pre_norm" and config.output_norm == "none" and reads_lm_head:
        raise ValueError(
            f"hidden_stage='pre_norm' and output_norm='none' with head={config.head!r}: the LM head's weights expect "
            "normed states; use output_norm='shared' or 'own', or hidden_stage='post_norm'."
        )


def refuse_unnormed_block(config: MTPConfig) -> None:
    """Whether the trunk's LM head, or a copy of it, is to read a decoder layer's output, a sum of residuals.

    Raises:
        ValueError: it is.
    """
    if config.output_norm == "none" and (config.unembedding == "shared" or config.head_init != "random"):
        raise ValueError(
            f"output_norm='none' with head={config.head!r}: the LM head's weights expect normed states, which a "
            "decoder layer's output is not; use output_norm='shared' or 'own'."
        )
