"""diffusers: the image autoencoders of latent diffusion, each with its own decoder."""

from typing import TYPE_CHECKING, Any

from fmprobe.loading import Adapter, Source

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder


class Diffusers(Adapter):
    """z = the posterior's mode, never a sample, normalised as published; inside the model, pixels are in [-1, 1]."""

    example = "stabilityai/sd-vae-ft-mse"
    kinds = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "AsymmetricAutoencoderKL")
    latents = "map (C, h, w), scaled as published"
    decoder = "own"
    requires = "diffusers"
    weights = "diffusion_pytorch_model.safetensors"
    processed = False

    def load(self, source: Source) -> "Autoencoder":
        """Load the whole autoencoder, which takes any multiple of its downsampling factor."""
        from fmprobe.autoencoder import Autoencoder
        from fmprobe_adapters._diffusers import load_module, read_normalisation
        from fmprobe_adapters._preprocessing import as_json, in_words, sides_of
        from fmprobe_adapters._weights import first_output

        source.pick_tokens(("all",))
        module = load_module(source)
        config = module.config
        normalisation = read_normalisation(source, module)
        factor = downsampling(config)
        native = sides_of(config.get("sample_size") or 512, source.name, "sample_size")
        sides = source.pick_image_sides(native, (factor, factor), flexible=True)

        def encode(images: "Tensor") -> "Tensor":
            out = module.encode((2 * images - 1).to(source.dtype))
            latents = out.latent_dist.mode() if hasattr(out, "latent_dist") else out[0]
            return normalisation.apply(latents.float())

        def decode(latents: "Tensor") -> "Tensor":
            raw = normalisation.undo(latents).to(source.dtype)
            return (module.decode(raw).sample.float() + 1) / 2

        image_shape = (int(config.in_channels), *sides)
        blank = first_output(source, module, encode, image_shape, f"cannot encode an image of {in_words(sides)}")
        return Autoencoder(
            encode,
            decode,
            image_shape=image_shape,
            latent_shape=tuple(blank.shape[1:]),
            provenance=source.provenance(
                tokens="all",
                space=normalisation.words,
                preprocessing={"mean": [0.5], "std": [0.5], "size": as_json(sides), "by": "fmprobe.images"},
                decoder={"kind": "own"},
            ),
            device=source.device,
        )


def downsampling(config: Any) -> int:
    """Number of pixels, per side, for each place of the latent map."""
    # The tiny and asymmetric autoencoders also have block_out_channels, which describe only their decoder or nothing.
    for name in ("encoder_block_out_channels", "down_block_out_channels", "block_out_channels"):
        if config.get(name):
            return 2 ** (len(config[name]) - 1)
    raise ValueError("the config has no block_out_channels, which give the downsampling factor")
