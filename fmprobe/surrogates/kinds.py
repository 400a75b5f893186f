"""The table of surrogate kinds. A kind is one class in one file, and one line here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from fmprobe.errors import InputError

if TYPE_CHECKING:
    from fmprobe.surrogates.artefact import Surrogate


class Kind(NamedTuple):
    """Where a kind is implemented, and what the command line says of it.

    Attributes:
        target: "module:class" of a `Surrogate`. The module is imported on first use.
        help: A few words for the help of `fit-decoder --kind`.
    """

    target: str
    help: str


KINDS = {
    "pixel": Kind("fmprobe.surrogates.pixel:PixelDecoder", "a decoder to images"),
    "latent": Kind("fmprobe.surrogates.latent:LatentSurrogate", "an autoencoder on features"),
    "closed-form": Kind("fmprobe.surrogates.closed:BottleneckDecoder", "a linear decoder from principal components"),
    "linear": Kind("fmprobe.surrogates.linear:LinearDecoder", "a linear decoder to images, in closed form"),
}


def find_kind(name: Any) -> "type[Surrogate]":
    """Return the class of a kind.

    Args:
        name: The name that the kind has in `KINDS`.

    Raises:
        InputError: If there is no such kind.
    """
    if name not in tuple(KINDS):  # a tuple, since a name that cannot be hashed is unknown as well
        raise InputError(f"unknown kind of decoder {name!r}: expected one of {', '.join(KINDS)}")
    module, _, attribute = KINDS[name].target.partition(":")
    return getattr(import_module(module), attribute)
