"""SigLIP and SigLIP2 at a fixed resolution: the image side, without a decoder."""

from typing import TYPE_CHECKING, ClassVar

from fmprobe.errors import InputError
from fmprobe.loading import Source
from fmprobe_adapters._token_encoder import TokenEncoder

if TYPE_CHECKING:
    from fmprobe.autoencoder import Autoencoder

NAFLEX = "siglip2"  # published fixed-resolution SigLIP2 checkpoints are of the type "siglip"


class SigLIP(TokenEncoder):
    """z = patch tokens after the last layer norm; there is no CLS token."""

    example = "google/siglip2-base-patch16-224"
    classes: ClassVar = {
        "siglip": ("SiglipVisionModel", {}),
        "siglip_vision_model": ("SiglipVisionModel", {}),
        NAFLEX: ("Siglip2VisionModel", {}),
    }

    def load(self, source: Source) -> "Autoencoder":
        """Load a model as every token encoder; the variant of flexible resolution is refused."""
        if source.config["model_type"] == NAFLEX:
            raise InputError(
                f"{source.name} is a NaFlex model, which takes images of any shape and so has no fixed image shape: "
                f"use a model of fixed resolution, such as {self.example}"
            )
        return super().load(source)
