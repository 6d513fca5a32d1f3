"""A loaded model in the coordinates of inputs as they are."""

from torch import Tensor, nn

from qdc.numerics.hadamard import RandomHadamard
from qdc.runtime.activations import READS, InputTransform


def without_rotations(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name; weights of linears that rotate what they read are rotated back."""
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    for path, module in model.named_modules():
        turn = getattr(module, READS, None)
        if isinstance(turn, InputTransform) and turn.size:
            back = RandomHadamard(turn.get_buffer("signs").float(), turn.size).inverse
            name = f"{path}.weight"
            state[name] = back(state[name].float()).to(state[name].dtype)
    return state
