"""The published decoders of representation autoencoders, and an encoder put together with one of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError
from fmprobe.loading import Published, Source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fmprobe.autoencoder import Autoencoder

WIDTH, DEPTH, HIDDEN, PATCH = 1152, 28, 4096, 16  # of the decoder "ViTXL" in all of the published configs
STABLE = 1e-5  # AutoencoderRAE adds it to the deviations of latents

# What the config of a decoder calls its encoder: the model types, and the class of transformers.
ENCODERS = {
    "dinov2": (("dinov2_with_registers",), "Dinov2WithRegistersModel"),
    "siglip2": (("siglip", "siglip_vision_model"), "SiglipVisionModel"),
    "mae": (("vit_mae",), "ViTMAEModel"),
}


def _pair(encoder: str, decoder: str, width: int, depth: int, patch: int, side: int = 256) -> Published:
    """An entry of the table. The number of parameters follows from the widths and depths of the two transformers."""
    encodes = depth * _block(width, 4 * width) + 3 * patch**2 * width
    paints = DEPTH * _block(WIDTH, HIDDEN) + (width + 3 * PATCH**2) * (WIDTH + 1)
    tokens = (side // PATCH) ** 2 + 1
    mixing = 4 * tokens**2 * (width * depth + WIDTH * DEPTH)  # scores and sums of attention
    operations = 2.0 * tokens * (encodes + paints) + mixing
    return Published(encoder, f"nyu-visionx/{decoder}", side, encodes + paints, operations)


def _block(width: int, hidden: int) -> int:
    """Parameters of one block of a transformer: attention, a hidden layer, and two norms."""
    return 4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width


PUBLISHED = (
    _pair("facebook/dinov2-with-registers-small", "RAE-dinov2-wReg-small-ViTXL-n08", 384, 12, 14),
    _pair("facebook/dinov2-with-registers-base", "RAE-dinov2-wReg-base-ViTXL-n08", 768, 12, 14),
    _pair("facebook/dinov2-with-registers-base", "RAE-dinov2-wReg-base-ViTXL-n08-i512", 768, 12, 14, side=512),
    _pair("facebook/dinov2-with-registers-large", "RAE-dinov2-wReg-large-ViTXL-n08", 1024, 24, 14),
    _pair("google/siglip2-base-patch16-256", "RAE-siglip2-base-p16-i256-ViTXL-n08", 768, 12, 16),
    _pair("facebook/vit-mae-base", "RAE-mae-base-p16-ViTXL-n08", 768, 12, 16)._replace(preferred=False),
)


def pair(encoder: Source, decoder: Source) -> "Autoencoder":
    """The encoder of its own checkpoint with the decoder of an AutoencoderRAE (arXiv 2510.11690).

    The arithmetic is that of diffusers' AutoencoderRAE: the last norm of the encoder has no weight and bias, and its
    patch tokens are normalised by the published mean and deviation. diffusers' class is not used, since it cannot be
    made for SigLIP2 with the current transformers.

    Raises:
        InputError: the two do not belong together, or weights are missing.
    """
    from torch.nn import functional as F

    from fmprobe.autoencoder import Autoencoder
    from fmprobe_adapters._weights import first_output

    encoder.pick_tokens(("patch",))
    config = decoder.config
    tokens = _tokens(encoder, decoder)
    painter, held = _decoder(decoder)
    inner, side, scale = int(config["encoder_input_size"]), int(painter.image_size), float(config["scaling_factor"])
    mean, std = held["encoder_mean"], held["encoder_std"]
    centre, spread = held["_latents_mean"], held["_latents_std"] + STABLE
    grid = inner // int(config["encoder_patch_size"])

    def encode(images: "Tensor") -> "Tensor":
        seen = images.to(encoder.dtype)
        if side != inner:
            seen = F.interpolate(seen, size=(inner, inner), mode="bicubic", align_corners=False)
        rows = tokens((seen - mean) / std)
        latents = rows.transpose(1, 2).reshape(len(rows), -1, grid, grid)
        return ((latents - centre) / spread * scale).float()

    def decode(latents: "Tensor") -> "Tensor":
        native = latents.to(encoder.dtype) / scale * spread + centre
        painted = painter.unpatchify(painter(native.flatten(2).transpose(1, 2)).logits)
        return (painted * std + mean).float()

    image_shape = (int(painter.num_channels), side, side)
    blank = first_output(encoder, painter, encode, image_shape, f"cannot encode an image of {side} px")
    resizing = "" if side == inner else f"; f resizes each image from {side} to {inner} px (bicubic) before it encodes"
    return Autoencoder(
        encode,
        decode,
        image_shape=image_shape,
        latent_shape=tuple(blank.shape[1:]),
        provenance=encoder.provenance(
            tokens="patch",
            space="patch tokens as a map, the last norm without weight and bias, normalised by the published mean and "
            "deviation, which are of real images" + resizing,
            preprocessing={
                "mean": mean.flatten().tolist(),
                "std": std.flatten().tolist(),
                "size": side,
                "encoder_size": inner,
                "by": "AutoencoderRAE",
            },
            decoder={"parameters": sum(p.numel() for p in painter.parameters())},
        ),
        device=encoder.device,
    )


def _tokens(encoder: Source, decoder: Source) -> "Callable[[Tensor], Tensor]":
    """The function from normalised images to patch tokens `(B, N, D)` after the last norm, without weight and bias."""
    import torch
    import transformers

    from fmprobe_adapters._transformers import load_module

    types, name = ENCODERS[decoder.config["encoder_type"]]
    stated = ("encoder_hidden_size", "encoder_patch_size", "encoder_num_hidden_layers")
    theirs = [decoder.config[key] for key in stated]
    config = encoder.config.get("vision_config") or encoder.config
    kind = encoder.config.get("model_type")
    if kind not in types:
        raise InputError(f"{decoder.name} decodes {' or '.join(types)}, and {encoder.name} is of type {kind!r}")
    module = load_module(encoder, getattr(transformers, name))
    config = module.config
    mine = [config.hidden_size, config.patch_size, config.num_hidden_layers]
    if mine != theirs:
        raise InputError(
            f"{decoder.name} decodes latents of an encoder of width, patch and layers {theirs}, and {encoder.name} has "
            f"{mine}: name the encoder that it was made for"
        )
    tower = getattr(module, "vision_model", module)
    last = tower.post_layernorm if hasattr(tower, "post_layernorm") else tower.layernorm
    last.weight = last.bias = None  # as AutoencoderRAE has it
    resized = {} if kind == "dinov2_with_registers" else {"interpolate_pos_encoding": True}
    patch = int(config.patch_size)
    if kind == "vit_mae":
        config.mask_ratio = 0.0

    def tokens(pixels: "Tensor") -> "Tensor":
        count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        more: dict[str, Any] = dict(resized)
        if kind == "vit_mae":  # rising noise keeps the tokens in place
            more["noise"] = torch.arange(count, device=pixels.device, dtype=pixels.dtype).expand(len(pixels), -1)
        return module(pixels, **more).last_hidden_state[:, -count:]

    return tokens


def _decoder(source: Source) -> "tuple[Any, dict[str, Tensor]]":
    """The decoder of an AutoencoderRAE, and the statistics of images and latents, on the device of the source.

    The weights of the encoder beside it are not read.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder

    from fmprobe_adapters._weights import check_keys, one_line_errors

    config = source.config
    if not config.get("reshape_to_2d", True):
        raise InputError(f"{source.name} keeps its latents as a list of tokens: expected a map")
    grid = int(config["encoder_input_size"]) // int(config["encoder_patch_size"])
    with one_line_errors(source.name):
        module: nn.Module = RAEDecoder(
            hidden_size=int(config["encoder_hidden_size"]),
            decoder_hidden_size=int(config["decoder_hidden_size"]),
            decoder_num_hidden_layers=int(config["decoder_num_hidden_layers"]),
            decoder_num_attention_heads=int(config["decoder_num_attention_heads"]),
            decoder_intermediate_size=int(config["decoder_intermediate_size"]),
            num_patches=grid**2,
            patch_size=int(config["patch_size"]),
            num_channels=int(config.get("num_channels", 3)),
            image_size=int(config["patch_size"]) * grid,
        )
    stored = _read(source)
    weights = {key.removeprefix("decoder."): value for key, value in stored.items() if key.startswith("decoder.")}
    weights.pop("decoder_pos_embed", None)  # it is computed
    ours = {key: value.shape for key, value in module.state_dict().items()}
    check_keys(
        source.name,
        "RAEDecoder",
        [f"decoder.{key}" for key in ours.keys() - weights.keys()],
        [f"decoder.{key}" for key in weights.keys() - ours.keys()],
        [(f"decoder.{key}", value.shape, ours[key]) for key, value in weights.items() if ours.get(key) != value.shape],
    )
    module.load_state_dict(weights)
    held = {key: _statistic(source, stored, key) for key in ("encoder_mean", "encoder_std")}
    held |= {key: _statistic(source, stored, key) for key in ("_latents_mean", "_latents_std")}
    module = module.requires_grad_(False).eval().to(source.device, source.dtype)
    return module, {key: value.to(source.device, torch.float32).to(source.dtype) for key, value in held.items()}


def _read(source: Source) -> "dict[str, Tensor]":
    """The stored tensors of an AutoencoderRAE without those of its encoder."""
    from safetensors import safe_open

    from fmprobe_adapters._weights import one_line_errors

    held = {}
    with one_line_errors(source.name):
        for path in source.weights:
            with safe_open(path, "pt") as file:
                held |= {key: file.get_tensor(key) for key in file.keys() if not key.startswith("encoder.")}  # noqa: SIM118
    return held


def _statistic(source: Source, stored: "dict[str, Tensor]", key: str) -> "Tensor":
    """A mean or deviation, from the weights or else from the config.

    Raises:
        InputError: it is in neither.
    """
    import torch

    from fmprobe_adapters._diffusers import IN_CONFIG

    if key in stored:
        return stored[key]
    stated = source.config.get(IN_CONFIG[key])
    if stated is None:
        raise InputError(f"{source.name} states no {IN_CONFIG[key]}, which its latents need: fetch it again")
    values = torch.tensor(stated, dtype=torch.float32)
    return values.view(1, -1, 1, 1) if key.startswith("encoder") else values
