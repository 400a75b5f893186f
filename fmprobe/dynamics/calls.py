"""How the functions of a caller are called: on memory of their own."""

from collections.abc import Callable

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def apart(f: Function) -> Function:
    """f on a copy of its argument, its value copied too.

    A caller's f may change its argument in place, or give the same buffer at every call: neither must reach memory
    that is read afterwards. Two copies of a latent cost next to nothing beside f.
    """

    def called(latents: Tensor) -> Tensor:
        value = f(latents.clone())
        return value.clone() if isinstance(value, Tensor) else value

    return called
