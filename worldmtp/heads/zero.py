"""A linear layer that starts at zero, and is known as such to whoever initialises weights."""

from torch import nn


class ZeroLinear(nn.Linear):
    """Starts at zero: a residual branch that ends in it starts as the identity, a prediction as the uniform one."""

    def reset_parameters(self) -> None:
        """Zero weight and bias."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
