"""ViT-MAE: a masked autoencoder with its own decoder."""

from typing import TYPE_CHECKING

from fmprobe.errors import InputError
from fmprobe.loading import Adapter, Source

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ViTMAEForPreTraining

    from fmprobe.autoencoder import Autoencoder


class MAE(Adapter):
    """ViTMAEForPreTraining: z = all tokens after the final layer norm, CLS first; its decoder reads them all."""

    example = "facebook/vit-mae-base"
    kinds = ("vit_mae",)
    latents = "CLS + patch tokens (1+N, D), native space"
    decoder = "own"
    spreads = True

    def load(self, source: Source) -> "Autoencoder":
        """Load the model with masking off and a fixed token order; left alone, it masks 75% even in eval mode."""
        import torch
        from transformers import ViTMAEForPreTraining

        from fmprobe.autoencoder import Autoencoder
        from fmprobe_adapters._preprocessing import sides_of
        from fmprobe_adapters._transformers import load_module, read_preprocessing

        if source.config.get("norm_pix_loss"):
            raise InputError(
                f"{source.name} was trained with norm_pix_loss: its decoder predicts patches without their own mean "
                "and deviation, so no image can be made from them; choose a checkpoint trained without it"
            )
        source.pick_tokens(("all",))
        module = load_module(source, ViTMAEForPreTraining)
        if not hasattr(module, "decoder"):  # a model in memory may lack it
            raise InputError(
                f"{source.name} is a {type(module).__name__}, which has no decoder: expected a ViTMAEForPreTraining"
            )
        config, channels = module.config, int(module.config.num_channels)
        preprocessing = read_preprocessing(source, channels)
        native = sides_of(config.image_size, source.name, "image_size")
        patch = sides_of(config.patch_size, source.name, "patch_size")
        sides = source.pick_image_sides(native, multiple_of=patch)
        resized = sides != native
        tokens = (sides[0] // patch[0]) * (sides[1] // patch[1])
        order = torch.arange(tokens, device=source.device)

        def encode(images: "Tensor") -> "Tensor":
            pixels = preprocessing.normalise(images).to(source.dtype)
            return _unmasked(module, pixels, order, resized).float()

        def decode(latents: "Tensor") -> "Tensor":
            restore = order.expand(len(latents), -1)
            out = module.decoder(latents.to(source.dtype), restore, interpolate_pos_encoding=resized)
            return preprocessing.denormalise(module.unpatchify(out.logits, sides).float())

        return Autoencoder(
            encode,
            decode,
            image_shape=(channels, *sides),
            latent_shape=(1 + tokens, int(config.hidden_size)),
            provenance=source.provenance(
                tokens="all",
                prefix_tokens=1,
                space="native (CLS and patch tokens after the encoder's final layer norm)",
                preprocessing=preprocessing.to_dict(),
                decoder={"kind": "own"},
            ),
            device=source.device,
            prepare=preprocessing.at(sides),
        )


def _unmasked(module: "ViTMAEForPreTraining", pixels: "Tensor", order: "Tensor", resized: bool) -> "Tensor":
    """All tokens of the encoder, unmasked and in the given order."""
    # At mask ratio 0 the model still permutes its tokens by this noise. Rising noise keeps them in place.
    noise = order.float().expand(len(pixels), -1)
    config = module.vit.config
    ratio, config.mask_ratio = config.mask_ratio, 0.0
    try:
        return module.vit(pixels, noise=noise, interpolate_pos_encoding=resized).last_hidden_state
    finally:
        config.mask_ratio = ratio
