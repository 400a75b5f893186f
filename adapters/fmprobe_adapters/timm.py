"""timm: vision transformers and convolutional backbones with a feature map, without a decoder."""

from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError
from fmprobe.loading import Adapter, Source

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder
    from fmprobe_adapters._preprocessing import Preprocessing, Sides

UNFETCHED = {"url": None, "hf_hub_id": None, "custom_load": False, "source": ""}  # weights come from the file given


class Timm(Adapter):
    """z = `forward_features`: patch tokens without their prefix, or the last feature map (C, h, w)."""

    example = "timm/vit_small_patch16_224.augreg_in21k"
    kinds = ("timm",)
    latents = "patch tokens (N, D) or feature map (C, h, w)"
    decoder = "surrogate"
    processed = False

    def load(self, source: Source) -> "Autoencoder":
        """An encoder alone. Other image sizes than its own where the architecture takes them."""
        import torch
        from timm.data.config import resolve_model_data_config

        from fmprobe.autoencoder import Autoencoder
        from fmprobe_adapters._preprocessing import in_words

        module = source.module
        native = _native_sides(source, module)
        sides = source.pick_image_sides(native, flexible=True)
        if module is None:
            module = _create(source, resized=sides != native)
        channels = _channels(source, module)
        preprocessing = _preprocessing(source.name, channels, resolve_model_data_config(module), native)
        prefix = int(getattr(module, "num_prefix_tokens", 0))

        def features(images: "Tensor") -> "Tensor":
            out = module.forward_features(preprocessing.normalise(images).to(source.dtype))
            # A map with its channels last, as Swin's, is laid out as every other.
            return out.movedim(-1, 1) if getattr(module, "output_fmt", None) == "NHWC" else out

        try:
            with torch.no_grad():
                blank = features(torch.full((1, channels, *sides), 0.5, device=source.device))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{source.name} does not take images of {in_words(sides)}: leave --image-size at its own, "
                f"{in_words(native)}"
            ) from error
        if not isinstance(blank, torch.Tensor) or blank.ndim not in (3, 4):
            raise InputError(f"{source.name} gives no one set of tokens and no one feature map: choose another model")
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
    if not has_tokens:
        return ("patch", "pooled")
    return ("patch", "cls", "pooled", "all") if prefix else ("patch", "pooled")


def _select(module: Any, features: "Tensor", tokens: str, prefix: int) -> "Tensor":
    if tokens == "pooled":  # the model's own way from features to a vector
        channels_last = getattr(module, "output_fmt", None) == "NHWC"
        return module.forward_head(features.movedim(1, -1) if channels_last else features, pre_logits=True)
    if features.ndim == 4 or tokens == "all":
        return features
    return features[:, 0] if tokens == "cls" else features[:, prefix:]


def _input_size(source: Source, module: Any) -> Any:
    config = module.pretrained_cfg if module is not None else source.config.get("pretrained_cfg", source.config)
    size = config.get("input_size")
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise InputError(f"config.json of {source.name} has no input_size of three numbers: it is not timm's")
    return size


def _native_sides(source: Source, module: Any) -> "Sides":
    """Of a model made for one size that size, whatever its pretrained configuration says; else the configuration's."""
    from fmprobe_adapters._preprocessing import sides_of

    embedding: Any = getattr(module, "patch_embed", None)
    own = embedding.img_size if getattr(embedding, "strict_img_size", False) else None
    if module is None:
        own = source.config.get("model_args", {}).get("img_size")
    return sides_of(own or list(_input_size(source, module)[1:]), source.name, "input_size")


def _channels(source: Source, module: Any) -> int:
    """Of the images that the model takes: those of its first convolution, where its configuration names one."""
    first = module.pretrained_cfg.get("first_conv")
    try:
        stem = module.get_submodule(first if isinstance(first, str) else first[0])
        return int(stem.in_channels)
    except (AttributeError, TypeError, IndexError):
        return int(_input_size(source, module)[0])


def _create(source: Source, resized: bool) -> Any:
    """The model that config.json describes, with the weights of its safetensors file and nothing fetched."""
    import timm
    import torch

    from fmprobe.hub import check_count, count_parameters
    from fmprobe_adapters._transformers import one_line_errors

    held = count_parameters(list(source.weights), source.name)
    name, config = source.config["architecture"], source.config
    cfg = {**config.get("pretrained_cfg", config), **UNFETCHED, "file": str(source.weights[0])}
    arguments = {"num_classes": config.get("num_classes", cfg.get("num_classes", 0)), **config.get("model_args", {})}
    if name not in timm.list_models():
        raise InputError(f"{source.name} is of timm's architecture {name!r}, which this timm does not know: upgrade it")
    with one_line_errors(source.name):
        with torch.device("meta"):  # nothing is allocated
            described = sum(p.numel() for p in timm.create_model(name, pretrained=False, **arguments).parameters())
        check_count(source.name, described, held)
        module = _made(timm, name, cfg, arguments, resized, source.random_weights is None)
    return module.requires_grad_(False).eval().to(source.device, source.dtype)


def _made(timm: Any, name: str, cfg: dict[str, Any], arguments: dict[str, Any], resized: bool, pretrained: bool) -> Any:
    if resized:
        try:  # transformers interpolate their position embeddings if asked to
            return timm.create_model(
                name, pretrained=pretrained, pretrained_cfg=cfg, dynamic_img_size=True, **arguments
            )
        except TypeError:  # others have no such argument, and no need of it
            pass
    return timm.create_model(name, pretrained=pretrained, pretrained_cfg=cfg, **arguments)


def _preprocessing(name: str, channels: int, config: dict[str, Any], native: "Sides") -> "Preprocessing":
    """timm's own evaluation transform, without its normalisation."""
    from timm.data.transforms_factory import create_transform

    from fmprobe_adapters._preprocessing import Preprocessing, check_channels

    mean, std = tuple(config["mean"]), tuple(config["std"])
    check_channels(mean, std, channels, name)

    def transformed(image: Any, sides: "Sides", normalize: bool) -> "Tensor":
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

    def resize(image: Any, sides: "Sides") -> "Tensor":
        return transformed(image, sides, normalize=False) / 255

    how = {
        "by": "timm",
        "crop": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        "resample": config["interpolation"],
    }
    preprocessing = Preprocessing(mean, std, native, resize, how)
    preprocessing.check_values(
        name, channels, lambda image: transformed(image, native, normalize=True), lambda image: resize(image, native)
    )
    return preprocessing
