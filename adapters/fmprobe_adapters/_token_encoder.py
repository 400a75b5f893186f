"""TokenEncoder: what the vision transformers of transformers have in common."""

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from fmprobe.errors import InputError
from fmprobe.loading import Adapter, Source

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder


class TokenEncoder(Adapter):
    """A vision transformer without a decoder: z = its patch tokens as the library's `last_hidden_state` has them.

    A family is a subclass that says which class of transformers each of its kinds is, and with what arguments.
    """

    classes: ClassVar[dict[str, tuple[str, dict[str, Any]]]]
    latents = "patch tokens (N, D)"
    spreads = True
    decoder = "surrogate"

    def __init_subclass__(cls) -> None:
        cls.kinds = tuple(cls.classes)

    def load(self, source: Source) -> "Autoencoder":
        """An encoder alone: decode and latent_map need a surrogate. It takes any multiple of its patch size."""
        import torch
        import transformers

        from fmprobe.autoencoder import Autoencoder
        from fmprobe_adapters._preprocessing import in_words, sides_of
        from fmprobe_adapters._transformers import load_module, read_preprocessing
        from fmprobe_adapters._weights import check_keys, first_call

        name, arguments = self.classes[source.config["model_type"]]
        wanted = getattr(transformers, name)
        absent: set[str] = set()
        module = load_module(source, wanted, absent, **arguments)
        if not isinstance(module, wanted):  # a model in memory that holds it, with a head or a text side
            module = getattr(module.base_model, "vision_model", module.base_model)
        config, channels = module.config, int(module.config.num_channels)
        preprocessing = read_preprocessing(source, channels)
        patch = sides_of(config.patch_size, source.name, "patch_size")
        own = sides_of(config.image_size, source.name, "image_size")
        # Position embeddings are interpolated from a square grid alone.
        flexible = own[0] // patch[0] == own[1] // patch[1]
        sides = source.pick_image_sides(preprocessing.native or own, multiple_of=patch, flexible=flexible)
        keyword = "interpolate_pos_encoding"  # of those that do not take other image sizes by themselves
        resized = keyword in inspect.signature(module.forward).parameters and sides != own

        def forward(images: "Tensor") -> Any:
            pixels = preprocessing.normalise(images).to(source.dtype)
            return module(pixels, **({keyword: True} if resized else {}))

        image_shape = (channels, *sides)
        if sides == own:
            what = f"cannot encode an image of {in_words(sides)}"
        else:
            what = f"does not take images of {in_words(sides)}, where its config says {in_words(own)}"
        image = torch.full((1, *image_shape), 0.5, device=source.device)
        with torch.no_grad(), first_call(source, module, what):
            blank = forward(image)
        if not hasattr(blank, "last_hidden_state"):
            raise InputError(f"{source.name} is a {type(module).__name__}, which gives no tokens: expected a {name}")
        count, pooler = blank.last_hidden_state.shape[1], blank.get("pooler_output") is not None
        prefix = count - (sides[0] // patch[0]) * (sides[1] // patch[1])  # CLS, distillation and register tokens
        tokens = source.pick_tokens(("patch", "cls", "pooled", "all") if prefix else ("patch", "pooled", "all"))

        def pick(out: Any) -> "Tensor":
            hidden = out.last_hidden_state
            if tokens == "pooled":
                return (out.pooler_output if pooler else hidden[:, prefix:].mean(dim=1)).float()
            return {"patch": hidden[:, prefix:], "cls": hidden[:, 0], "all": hidden}[tokens].float()

        if absent and not bool(pick(blank).isfinite().all()):  # a head that z does not pass through may be absent
            check_keys(source.name, type(module).__name__, absent)

        rows = {"patch": (count - prefix,), "all": (count,)}.get(tokens, ())
        what = f"{tokens} tokens" if tokens != "pooled" else "pooler_output" if pooler else "mean patch token"
        return Autoencoder(
            lambda images: pick(forward(images)),
            None,
            image_shape=image_shape,
            latent_shape=(*rows, int(config.hidden_size)),
            provenance=source.provenance(
                tokens=tokens,
                prefix_tokens=prefix,
                space=f"native ({what} of {type(module).__name__}); no decoder",
                preprocessing=preprocessing.to_dict(),
                decoder=None,
            ),
            device=source.device,
            prepare=preprocessing.at(sides),
        )
