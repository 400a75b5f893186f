"""timm: vision transformers, and convolutional backbones with a feature map, without a decoder."""

from functools import partial
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError
from fmprobe.loading import Adapter, Source

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder
    from fmprobe_adapters._preprocessing import Preprocessing, Sides


class Timm(Adapter):
    """z = `forward_features`: patch tokens without their prefix tokens, or the last feature map (C, h, w)."""

    example = "timm/vit_small_patch16_224.augreg_in21k"
    kinds = ("timm",)
    latents = "patch tokens (N, D) or feature map (C, h, w)"
    decoder = "surrogate"
    processed = False

    def load(self, source: Source) -> "Autoencoder":
        """Load an encoder alone, at another image size than its own if the architecture takes it."""
        import torch
        from timm.data.config import resolve_model_data_config

        from fmprobe.autoencoder import Autoencoder
        from fmprobe_adapters._preprocessing import in_words
        from fmprobe_adapters._timm import load_module
        from fmprobe_adapters._weights import first_output

        module = source.module
        if module is not None and not hasattr(module, "forward_features"):
            raise InputError(
                f"{source.name} gives a list of feature maps, not one set of tokens or one map: make the model "
                "without features_only"
            )
        native = _native_sides(source, module)
        sides = source.pick_image_sides(native, flexible=True)
        if module is None:
            module = load_module(source, resized=sides != native)
        channels = _channels(source, module)
        preprocessing = _preprocessing(source.name, channels, resolve_model_data_config(module), native)
        prefix = int(getattr(module, "num_prefix_tokens", 0))

        def features(images: "Tensor") -> "Tensor":
            out = module.forward_features(preprocessing.normalise(images).to(source.dtype))
            # A map with its channels last, such as that of Swin, is laid out like all others.
            return out.movedim(-1, 1) if getattr(module, "output_fmt", None) == "NHWC" else out

        what = f"cannot encode an image of {in_words(sides)}"
        if sides != native:
            what = f"does not take images of {in_words(sides)}, leave the image size at its own, {in_words(native)}"
        blank = first_output(source, module, features, (channels, *sides), what)
        if not isinstance(blank, torch.Tensor) or blank.ndim not in (3, 4):
            raise InputError(f"{source.name} gives neither one set of tokens nor one feature map: choose another model")
        tokens = source.pick_tokens(_available(blank.ndim == 3, prefix))

        def encode(images: "Tensor") -> "Tensor":
            return _select(module, features(images), tokens, prefix).float()

        return Autoencoder(
            encode,
            None,
            image_shape=(channels, *sides),
            latent_shape=tuple(_select(module, blank, tokens, prefix).shape[1:]),
            provenance=source.provenance(
                tokens=tokens,
                prefix_tokens=prefix,
                space=f"native ({tokens} of {type(module).__name__}.forward_features); no decoder",
                preprocessing=preprocessing.to_dict(),
                decoder=None,
            ),
            device=source.device,
            prepare=preprocessing.at(sides),
        )


def _available(has_tokens: bool, prefix: int) -> Any:
    """The tokens that can make up z, the default first."""
    if not has_tokens:
        return ("patch", "pooled")
    return ("patch", "cls", "pooled", "all") if prefix else ("patch", "pooled")


def _select(module: Any, features: "Tensor", tokens: str, prefix: int) -> "Tensor":
    """The tokens that make up z."""
    if tokens == "pooled":  # the head of the model pools the features to a vector
        channels_last = getattr(module, "output_fmt", None) == "NHWC"
        return module.forward_head(features.movedim(1, -1) if channels_last else features, pre_logits=True)
    if features.ndim == 4 or tokens == "all":
        return features
    return features[:, 0] if tokens == "cls" else features[:, prefix:]


def _input_size(source: Source, module: Any) -> Any:
    """The input size (C, H, W) that the pretrained configuration states."""
    config = module.pretrained_cfg if module is not None else source.config.get("pretrained_cfg", source.config)
    size = config.get("input_size")
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise InputError(
            f"config.json of {source.name} has no input_size of three numbers: pass a config.json that timm wrote"
        )
    return size


def _native_sides(source: Source, module: Any) -> "Sides":
    """The model's own height and width: those that it is built for, if fixed, else those of its configuration."""
    from fmprobe_adapters._preprocessing import sides_of

    embedding: Any = getattr(module, "patch_embed", None)
    own = embedding.img_size if getattr(embedding, "strict_img_size", False) else None
    if module is None:
        own = source.config.get("model_args", {}).get("img_size")
    return sides_of(own or list(_input_size(source, module)[1:]), source.name, "input_size")


def _channels(source: Source, module: Any) -> int:
    """Number of channels of the images: that of the first convolution, if the configuration names it."""
    first = module.pretrained_cfg.get("first_conv")
    try:
        stem = module.get_submodule(first if isinstance(first, str) else first[0])
        return int(stem.in_channels)
    except (AttributeError, TypeError, IndexError):
        return int(_input_size(source, module)[0])


def _preprocessing(name: str, channels: int, config: dict[str, Any], native: "Sides") -> "Preprocessing":
    """timm's own evaluation transform, with the normalisation separate."""
    from fmprobe_adapters._preprocessing import Preprocessing, check_channels

    mean, std = tuple(config["mean"]), tuple(config["std"])
    check_channels(mean, std, channels, name)

    how = {
        "by": "timm",
        "crop": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        "resample": config["interpolation"],
    }
    resize, whole = partial(_resized, name, config), partial(_transformed, name, config, normalize=True)
    preprocessing = Preprocessing(mean, std, native, resize, how)
    preprocessing.check_values(name, channels, partial(whole, sides=native), preprocessing.at(native))
    return preprocessing


def _transformed(name: str, config: dict[str, Any], image: Any, sides: "Sides", normalize: bool) -> "Tensor":
    """A picture after timm's own transform."""
    from timm.data.transforms_factory import create_transform

    wanted = {**config, "input_size": (config["input_size"][0], *sides)}
    try:
        made: Any = create_transform(**wanted, normalize=normalize)
        return made(image).float()
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise InputError(
            f"the preprocessing of {name} (interpolation {config['interpolation']!r}, crop_mode "
            f"{config['crop_mode']!r}, crop_pct {config['crop_pct']}) cannot read a picture: {reason}"
        ) from error


def _resized(name: str, config: dict[str, Any], image: Any, sides: "Sides") -> "Tensor":
    """A picture in [0, 1], resized and cropped by timm."""
    return _transformed(name, config, image, sides, normalize=False) / 255
