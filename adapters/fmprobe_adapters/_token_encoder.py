"""TokenEncoder: what the vision transformers of transformers have in common."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fmprobe.errors import InputError
from fmprobe.loading import Adapter, Source, Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder

INTERPOLATE = "interpolate_pos_encoding"  # argument of models that take other image sizes only if asked to


class TokenEncoder(Adapter):
    """A vision transformer without a decoder: z = its patch tokens as in the library's `last_hidden_state`.

    A family is a subclass. It says which class of transformers each of its kinds is, and with what arguments.
    """

    classes: ClassVar[dict[str, tuple[str, dict[str, Any]]]]
    latents = "patch tokens (N, D)"
    spreads = True
    decoder = "surrogate"

    def __init_subclass__(cls) -> None:
        cls.kinds = tuple(cls.classes)

    def load(self, source: Source) -> "Autoencoder":
        """Load an encoder alone, at any multiple of its patch size; decode and latent_map need a surrogate."""
        from fmprobe.autoencoder import Autoencoder
        from fmprobe_adapters._preprocessing import in_words, sides_of
        from fmprobe_adapters._transformers import read_preprocessing
        from fmprobe_adapters._weights import check_keys, first_output

        absent: set[str] = set()
        module = self._module(source, absent)
        config, channels = module.config, int(module.config.num_channels)
        preprocessing = read_preprocessing(source, channels)
        patch = sides_of(config.patch_size, source.name, "patch_size")
        own = sides_of(config.image_size, source.name, "image_size")
        # Position embeddings can be interpolated only from a square grid.
        flexible = own[0] // patch[0] == own[1] // patch[1]
        sides = source.pick_image_sides(preprocessing.native or own, multiple_of=patch, flexible=flexible)
        takes = inspect.signature(module.forward).parameters
        resized = {INTERPOLATE: True} if sides != own and INTERPOLATE in takes else {}

        def forward(images: "Tensor") -> Any:
            return module(preprocessing.normalise(images).to(source.dtype), **resized)

        what = f"cannot encode an image of {in_words(sides)}"
        if sides != own:
            what = f"does not take images of {in_words(sides)}, where its config says {in_words(own)}"
        blank = first_output(source, module, forward, (channels, *sides), what)
        if not hasattr(blank, "last_hidden_state"):
            expected, _ = self.classes[source.config["model_type"]]
            raise InputError(
                f"{source.name} is a {type(module).__name__}, which gives no tokens: expected a {expected}"
            )
        choice = _Choice.make(source, blank, patches=(sides[0] // patch[0]) * (sides[1] // patch[1]))
        if absent and not bool(choice.pick(blank).isfinite().all()):  # a head that z does not use may be absent
            check_keys(source.name, type(module).__name__, absent)
        return Autoencoder(
            lambda images: choice.pick(forward(images)),
            None,
            image_shape=(channels, *sides),
            latent_shape=(*choice.rows, int(config.hidden_size)),
            provenance=source.provenance(
                tokens=choice.tokens,
                prefix_tokens=choice.prefix,
                space=f"native ({choice.words} of {type(module).__name__}); no decoder",
                preprocessing=preprocessing.to_dict(),
                decoder=None,
            ),
            device=source.device,
            prepare=preprocessing.at(sides),
        )

    def _module(self, source: Source, absent: set[str]) -> Any:
        """The vision transformer of a source; `absent` gets the names of weights that it lacks."""
        import transformers

        from fmprobe_adapters._transformers import load_module

        name, arguments = self.classes[source.config["model_type"]]
        wanted = getattr(transformers, name)
        module = load_module(source, wanted, absent, **arguments)
        if isinstance(module, wanted):
            return module
        # A model in memory may hold it beside a head or a text model.
        return getattr(module.base_model, "vision_model", module.base_model)


@dataclass(frozen=True)
class _Choice:
    """The tokens of a model's output that make up z."""

    tokens: Tokens
    count: int  # number of all tokens
    prefix: int  # number of CLS, distillation and register tokens, which come first
    pooler: bool  # whether the model has a pooler of its own

    @classmethod
    def make(cls, source: Source, blank: Any, patches: int) -> "_Choice":
        """The tokens asked for, from an output of a model that cuts an image into so many patches."""
        count = blank.last_hidden_state.shape[1]
        prefix = count - patches
        tokens = source.pick_tokens(("patch", "cls", "pooled", "all") if prefix else ("patch", "pooled", "all"))
        return cls(tokens, count, prefix, blank.get("pooler_output") is not None)

    def pick(self, out: Any) -> "Tensor":
        """z of an output."""
        hidden = out.last_hidden_state
        if self.tokens == "pooled":
            return (out.pooler_output if self.pooler else hidden[:, self.prefix :].mean(dim=1)).float()
        return {"patch": hidden[:, self.prefix :], "cls": hidden[:, 0], "all": hidden}[self.tokens].float()

    @property
    def rows(self) -> tuple[int, ...]:
        """Shape of z without its last axis."""
        return {"patch": (self.count - self.prefix,), "all": (self.count,)}.get(self.tokens, ())

    @property
    def words(self) -> str:
        """What z is called in a provenance."""
        if self.tokens != "pooled":
            return f"{self.tokens} tokens"
        return "pooler_output" if self.pooler else "mean patch token"
