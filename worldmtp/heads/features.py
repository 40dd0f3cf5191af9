"""What one pass of the trunk leaves behind for its heads, and how it is recorded.

The backbone returns its last hidden state after the final norm. Some heads read it before that norm (EAGLE-1, some
released checkpoints) or read layers further down (Gloeckle et al. 2024 branch off before the last layer, EAGLE-3 reads
a low, a middle and a high one). Hooks record those in the same pass, only while they are asked for, so that there is
one trunk forward per micro-batch whatever the heads read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
_LAYER_LISTS = ("layers", "h", "blocks")


@dataclass(frozen=True)
class TrunkFeatures:
    """Hidden states of one trunk pass: ``post_norm`` is what the LM head reads; ``layers`` are those asked for."""

    post_norm: Float[Tensor, "batch time hidden"]
    pre_norm: Float[Tensor, "batch time hidden"] | None = None
    layers: tuple[Float[Tensor, "batch time hidden"], ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> "TrunkFeatures":
        """``function`` of every hidden state."""
        return TrunkFeatures(
            post_norm=function(self.post_norm),
            pre_norm=None if self.pre_norm is None else function(self.pre_norm),
            layers=tuple(function(layer) for layer in self.layers),
        )

    def detach(self) -> "TrunkFeatures":
        """The same values outside the graph."""
        return self.map(lambda hidden: hidden.detach())


@dataclass
class Recording:
    """Filled by the hooks of ``record_features`` during a pass of the backbone."""

    num_layers: int
    reads_pre_norm: bool
    _post_norm: Tensor | None = None
    _pre_norm: Tensor | None = None
    _layers: dict[int, Tensor] = field(default_factory=dict)

    def features(self) -> TrunkFeatures:
        """What the pass left.

        Raises:
            RuntimeError: the backbone was not run, or a hook did not see what it waited for.
        """
        if self._post_norm is None or len(self._layers) < self.num_layers:
            raise RuntimeError("the trunk's backbone was not run to its end while its features were recorded.")
        if self.reads_pre_norm and self._pre_norm is None:
            raise RuntimeError("the trunk's final norm was not called; its input, which the heads read, is unknown.")
        return TrunkFeatures(self._post_norm, self._pre_norm, tuple(self._layers[i] for i in range(self.num_layers)))


@contextmanager
def record_features(backbone: nn.Module, layers: Sequence[int] = (), pre_norm: bool = False) -> Iterator[Recording]:
    """Record the passes of ``backbone`` made inside; the last one counts.

    Raises:
        ValueError: the backbone has no such layer, or a final norm or list of layers that is not known by name.
    """
    recording = Recording(len(layers), pre_norm)
    with ExitStack() as stack:

        def keep_last(module: nn.Module, args: Any, output: Any) -> None:
            recording._post_norm = output.last_hidden_state

        stack.callback(backbone.register_forward_hook(keep_last).remove)
        if pre_norm:

            def keep_norm_input(module: nn.Module, args: Any, kwargs: Any) -> None:
                recording._pre_norm = args[0] if args else next(iter(kwargs.values()))

            hook = final_norm(backbone).register_forward_pre_hook(keep_norm_input, with_kwargs=True)
            stack.callback(hook.remove)
        stacked = layer_list(backbone) if layers else nn.ModuleList()
        for place, index in enumerate(layers):

            def keep_layer(module: nn.Module, args: Any, output: Any, place: int = place) -> None:
                recording._layers[place] = output[0] if isinstance(output, tuple) else output

            stack.callback(stacked[index].register_forward_hook(keep_layer).remove)
        yield recording


def final_norm(backbone: nn.Module) -> nn.Module:
    """The norm between the last layer and the LM head.

    Raises:
        ValueError: it goes by a name that is not known.
    """
    return _named(backbone, _FINAL_NORMS, "final norm", "read hidden_stage='post_norm' with an own norm")


def layer_list(backbone: nn.Module) -> nn.ModuleList:
    """The trunk's layers, in order.

    Raises:
        ValueError: they go by a name that is not known.
    """
    layers = _named(backbone, _LAYER_LISTS, "list of layers", "choose heads that read the last hidden state only")
    assert isinstance(layers, nn.ModuleList)
    return layers


def _named(backbone: nn.Module, names: tuple[str, ...], what: str, remedy: str) -> nn.Module:
    for owner in (backbone, getattr(backbone, "decoder", None)):
        for name in names:
            found = getattr(owner, name, None)
            if isinstance(found, nn.Module):
                return found
    raise ValueError(f"{type(backbone).__name__} has no {what} under the names {list(names)}; {remedy}.")
