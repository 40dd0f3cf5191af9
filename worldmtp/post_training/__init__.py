"""Post-training on TRL with MTP heads: the only room that imports trl.

Names are loaded on first use, so that importing the package costs neither torch nor trl; the first use checks that the
installed TRL still has the seams this room is built on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmtp.post_training.compat import check_seams
    from worldmtp.post_training.demonstrations import build_demonstrations
    from worldmtp.post_training.metric_writer import MetricWriterCallback
    from worldmtp.post_training.sft import MTPSFTTrainer
    from worldmtp.post_training.sft_config import MTPSFTConfig

__all__ = [
    "MTPSFTConfig",
    "MTPSFTTrainer",
    "MetricWriterCallback",
    "build_demonstrations",
    "check_seams",
]

_MODULE_OF = {
    "MTPSFTConfig": "sft_config",
    "MTPSFTTrainer": "sft",
    "MetricWriterCallback": "metric_writer",
    "build_demonstrations": "demonstrations",
    "check_seams": "compat",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    import_module(f"{__name__}.compat").check_seams()
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
