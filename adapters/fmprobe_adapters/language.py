"""Causal language models: f is the residual stream from after the embedding to before the head."""

from typing import TYPE_CHECKING, ClassVar

from fmprobe.errors import InputError
from fmprobe.loading import Adapter, Source

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.autoencoder import Autoencoder

POSITIONS = 16  # length of the sequence that is iterated


class Language(Adapter):
    """z = vectors at 16 positions, standardised by the embedding matrix; no images (Fumero et al., fig. 17)."""

    example = "Qwen/Qwen3-0.6B"
    classes: ClassVar[dict[str, str]] = {
        "llama": "LlamaModel",  # SmolLM2 is of this kind too
        "mistral": "MistralModel",
        "qwen2": "Qwen2Model",
        "qwen3": "Qwen3Model",
        "smollm3": "SmolLM3Model",
    }
    kinds = tuple(classes)
    latents = "16 positions of the residual stream (16, D); no images"
    decoder = "none needed"
    spreads = True
    processed = False

    def load(self, source: Source) -> "Autoencoder":
        """Load all layers and the last norm as one map of the residual stream. There are no images: `image_shape` is
        ().
        """
        import transformers

        from fmprobe.autoencoder import Autoencoder
        from fmprobe_adapters._transformers import load_module

        source.pick_tokens(("all",))
        if source.image_size not in (None, "fit"):
            raise InputError(f"{source.name} is a language model, which takes no images: leave the image size out")
        wanted = getattr(transformers, self.classes[source.config["model_type"]])
        module = load_module(source, wanted)
        module = module if isinstance(module, wanted) else module.base_model
        embedding = module.get_input_embeddings().weight.detach().float()
        mean, std = embedding.mean(dim=0), embedding.std(dim=0)

        def latent_map(latents: "Tensor") -> "Tensor":
            stream = latents * std + mean
            out = module(inputs_embeds=stream.to(source.dtype), use_cache=False)
            return (out.last_hidden_state.float() - mean) / std

        return Autoencoder(
            None,
            None,
            image_shape=(),
            latent_shape=(POSITIONS, embedding.shape[1]),
            provenance=source.provenance(
                tokens="all",
                space=(
                    "residual stream after the embedding, standardised by the mean and deviation a channel of the "
                    f"embedding matrix, so that N(0, I) starts are random embeddings at {POSITIONS} positions; f runs "
                    "all layers and the last norm, up to the head, under the causal mask"
                ),
                preprocessing=None,
                decoder={"kind": "none needed"},
            ),
            device=source.device,
            latent_map=latent_map,
        )
