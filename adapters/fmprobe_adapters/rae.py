"""RAE: representation autoencoders, with published decoders for DINOv2, SigLIP2 and MAE (Zheng et al. 2025)."""

from typing import TYPE_CHECKING, Any

from fmprobe.loading import Adapter, Source
from fmprobe_adapters._rae_decoders import PUBLISHED, pair

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder


class RAE(Adapter):
    """z = the encoder's patch tokens as a map, normalised by the published statistics (arXiv 2510.11690)."""

    example = "nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08"
    kinds = ("AutoencoderRAE",)
    latents = "patch tokens as a map (D, h, w), normalised as published"
    decoder = "own"
    requires = "diffusers"
    weights = "diffusion_pytorch_model.safetensors"
    processed = False
    published = PUBLISHED

    def pair(self, encoder: Source, decoder: Source) -> "Autoencoder":
        """The encoder of its own checkpoint with the decoder alone of a representation autoencoder."""
        return pair(encoder, decoder)

    def load(self, source: Source) -> "Autoencoder":
        """Load the whole autoencoder at its one size. Its decoder may make larger images than its encoder takes."""
        from fmprobe.autoencoder import Autoencoder
        from fmprobe.errors import InputError
        from fmprobe_adapters._diffusers import load_module
        from fmprobe_adapters._weights import first_output

        source.pick_tokens(("patch",))
        module = load_module(source, _complete)
        side, inner = int(module.decoder_image_size), int(module.encoder_input_size)
        if source.pick_image_size(side) != side:
            raise InputError(f"{source.name} decodes to {side} px alone: leave the image size out")

        def encode(images: "Tensor") -> "Tensor":
            return module.encode(images.to(source.dtype)).latent.float()

        def decode(latents: "Tensor") -> "Tensor":
            return module.decode(latents.to(source.dtype)).sample.float()

        image_shape = (int(module.config.num_channels), side, side)
        blank = first_output(source, module, encode, image_shape, f"cannot encode an image of {side} px")
        resizing = (
            "" if side == inner else f"; f resizes each image from {side} to {inner} px (bicubic) before it encodes"
        )
        return Autoencoder(
            encode,
            decode,
            image_shape=image_shape,
            latent_shape=tuple(blank.shape[1:]),
            provenance=source.provenance(
                tokens="patch",
                space="normalised by the published mean and deviation, which are of real images" + resizing,
                preprocessing={
                    "mean": module.encoder_mean.flatten().tolist(),
                    "std": module.encoder_std.flatten().tolist(),
                    "size": side,
                    "encoder_size": inner,
                    "by": "AutoencoderRAE",
                },
                decoder={"kind": "own", "encoder": module.config.encoder_type},
            ),
            device=source.device,
        )


def _complete(source: Source, module: Any) -> tuple[str, ...]:
    """Load the encoder's weights if they carry the names of transformers' files, which diffusers does not know."""
    from safetensors.torch import load_file

    from fmprobe_adapters._diffusers import unfilled
    from fmprobe_adapters._weights import check_keys, left_over

    empty = unfilled(module.encoder)
    if not empty:
        return ()
    stored = {key: value for path in source.weights for key, value in load_file(path).items()}
    state = {key.removeprefix("encoder."): value for key, value in stored.items() if key.startswith("encoder.")}
    encoder, info = type(module.encoder).from_pretrained(
        None,
        config=module.encoder.config,
        state_dict=state,
        dtype=source.dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    check_keys(
        source.name,
        f"the encoder of {type(module).__name__}",
        [f"encoder.{key}" for key in empty & set(info["missing_keys"])],
        [f"encoder.{key}" for key in left_over(encoder.state_dict(), info["unexpected_keys"])],
        [(f"encoder.{key}", theirs, ours) for key, theirs, ours in info["mismatched_keys"]],
    )
    # The published latents come from a last norm without weight and bias.
    encoder.layernorm.weight = encoder.layernorm.bias = None
    module.encoder = encoder
    return ("encoder.",)
