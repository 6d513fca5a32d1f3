"""A module that is exported: somebody's model inside one that is called as every model here is."""

from typing import ClassVar

from torch import Tensor, nn

PREFIX = "body."
"""Where the module sits in a ``BodyModel``."""


class BodyModel(nn.Module):
    """Holds the model whose forward is traced, and says what the tracing has to know of it."""

    untraceable: ClassVar[str] = ""
    """What to do if ``torch.export`` cannot trace it."""
    body: nn.Module

    @property
    def kind(self) -> str:
        """Name of the model's class."""
        return type(self.body).__name__

    @property
    def tied(self) -> dict[str, str]:
        """Further names of parameters that have two, each with the first name."""
        first = {parameter: name for name, parameter in self.body.named_parameters()}
        every = self.body.named_parameters(remove_duplicate=False)
        return {name: first[parameter] for name, parameter in every if first[parameter] != name}

    @property
    def owned(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model, by the model's own names, tied ones included."""
        found: dict[str, Tensor] = self.body.state_dict()
        return found

    def example(self) -> nn.Module:
        """What is exported: this model, without the values of its parameters."""
        raise NotImplementedError
