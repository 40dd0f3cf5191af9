"""Numbers of a step that the host reads when they are there, so that no step waits for the one before.

``float(loss)`` makes the host wait until an accelerator has done all that was asked of it, and the accelerator then
waits for the host to ask for more. Here the numbers of a step are one small tensor; its copy to the host is queued
behind what makes it, and read when it has arrived. On a CPU that is at once. What is read is exactly what ``float``
would have given.

Left out: sums on the device. A step's numbers are a few hundred bytes, and summed on the host in double precision.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

Numbers = dict[str, float]
Check = Callable[[Numbers, int], None]
"""(the numbers of a step, the step) -> raises where one of them ends the training."""


class HostCopy:
    """A tensor on its way to the host."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values

    @property
    def has_arrived(self) -> bool:
        """Return whether reading would not wait."""
        return self._event is None or self._event.query()

    def read(self) -> list[float]:
        """Return the numbers, after waiting for them where they have not arrived: the one place where a host waits."""
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._values.tolist()]


class LateNumbers:
    """The numbers of many steps, checked in their order as they arrive.

    Args:
        check: called with the numbers of each step.
        keeps: numbers are kept until they are taken; False where they are only to be checked.
    """

    def __init__(self, check: Check, keeps: bool = True) -> None:
        self._check, self._keeps = check, keeps
        self._coming: deque[tuple[tuple[str, ...], int, HostCopy]] = deque()
        self._read: list[Numbers] = []

    @property
    def is_coming(self) -> bool:
        """Return whether some numbers have not been checked yet."""
        return bool(self._coming)

    def add(self, numbers: Mapping[str, Shaped[Tensor, ""]], step: int = 0) -> None:
        """Send numbers of a step to the host, and check what has arrived by now."""
        names = tuple(numbers)
        values = torch.stack([number.detach() for number in numbers.values()])
        self._coming.append((names, step, HostCopy(values)))
        self.poll()

    def poll(self) -> None:
        """Check what has arrived, without waiting."""
        while self._coming and self._coming[0][2].has_arrived:
            self._next()

    def take(self) -> list[Numbers]:
        """Wait for all numbers, check them, and return what was added since the last take, in its order."""
        while self._coming:
            self._next()
        read, self._read = self._read, []
        return read

    def _next(self) -> None:
        names, step, copy = self._coming.popleft()
        numbers = dict(zip(names, copy.read(), strict=True))
        self._check(numbers, step)
        if self._keeps:
            self._read.append(numbers)


def zero_unless_finite(weights: Iterable[Tensor], norm: Shaped[Tensor, ""]) -> None:
    """Make the weights' gradients zeros if their ``norm`` is not finite, on the device, without asking the host."""
    is_broken = ~torch.isfinite(norm)
    for weight in weights:
        if weight.grad is not None:
            weight.grad.masked_fill_(is_broken, 0.0)
