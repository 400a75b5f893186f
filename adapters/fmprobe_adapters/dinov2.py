"""DINOv2: a self-supervised encoder without a decoder."""

from typing import TYPE_CHECKING

from fmprobe.loading import Adapter, Source

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder


class DINOv2(Adapter):
    """Dinov2Model: z = patch tokens after the final layer norm; the CLS token is left out."""

    example = "facebook/dinov2-small"
    model_types = ("dinov2",)
    latents = "patch tokens (N, D)"
    decoder = "surrogate"

    def load(self, source: Source) -> "Autoencoder":
        """An encoder alone: decode and latent_map need a surrogate decoder. It takes any multiple of its patch size."""
        from transformers import Dinov2Model

        from fmprobe.autoencoder import Autoencoder
        from fmprobe_adapters._transformers import load_module, read_preprocessing

        preprocessing = read_preprocessing(source)
        module = load_module(source, Dinov2Model)
        patch = int(module.config.patch_size)
        size = source.pick_image_size(preprocessing.size, multiple_of=patch, needs_surrogate=True)
        prefix = 1

        def encode(images: "Tensor") -> "Tensor":
            pixels = preprocessing.normalise(images).to(source.dtype)
            return module(pixels).last_hidden_state[:, prefix:].float()

        return Autoencoder(
            encode,
            None,
            image_shape=(int(module.config.num_channels), size, size),
            latent_shape=((size // patch) ** 2, int(module.config.hidden_size)),
            provenance={
                "model": source.name,
                "revision": source.revision,
                "dtype": str(source.dtype).removeprefix("torch."),
                "tokens": "patch",
                "space": "native (after the encoder's final layer norm); no decoder",
                "preprocessing": preprocessing.to_dict(),
                "decoder": None,
            },
            device=source.device,
        )
