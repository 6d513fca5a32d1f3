"""Adam (arXiv 1412.6980) by the function of it that torch has, without its class.

The first optimizer that is made of a class imports the compiler of torch with it: 150 MB that stay
in the process and 1.6 seconds, which a small model feels. The arithmetic is that of torch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS = 0.9, 0.95
"""Of gradients some 10 steps, of their squares some 20: a pass takes but a few hundred."""
EPSILON = 1e-8


class Adam:
    """What has been averaged for some tensors, and the step that follows from it."""

    def __init__(
        self,
        moving: Sequence[tuple[Tensor, float]],
        betas: tuple[float, float] = BETAS,
        *,
        amsgrad: bool = False,
    ) -> None:
        """Start without a step.

        Args:
            moving: f32 tensors, which are moved in place by their ``grad``, each with its step.
            betas: of the averages of gradients and of their squares.
            amsgrad: whether to divide by the largest average of squares so far.
        """
        self.moving, self.betas, self.amsgrad = list(moving), betas, amsgrad
        tensors = [tensor for tensor, _ in self.moving]
        self._means = [torch.zeros_like(tensor) for tensor in tensors]
        self._squares = [torch.zeros_like(tensor) for tensor in tensors]
        self._largest = [torch.zeros_like(tensor) for tensor in tensors] if amsgrad else []
        self._counts = [torch.zeros(()) for _ in tensors]

    def forget(self) -> None:
        """Let go of the gradients."""
        for tensor, _ in self.moving:
            tensor.grad = None

    @torch.no_grad()
    def step(self, share: float = 1.0) -> None:
        """Move what has a gradient by a share of its step."""
        for place, (tensor, rate) in enumerate(self.moving):
            if tensor.grad is None:
                continue
            at = slice(place, place + 1)
            adam(
                [tensor],
                [tensor.grad],
                self._means[at],
                self._squares[at],
                self._largest[at],
                self._counts[at],
                amsgrad=self.amsgrad,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=share * rate,
                weight_decay=0,
                eps=EPSILON,
                maximize=False,
            )
