"""Decoders that were published for encoders: which encoders have one, and an encoder loaded together with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError
from fmprobe.families import Adapter, Published, Source, adapters

if TYPE_CHECKING:
    from fmprobe.autoencoder import Autoencoder
    from fmprobe.hub import Checkpoint

PUBLISHED = "published"  # the word that stands for the published decoder of an encoder
UNUSED = ("processor", "device_map")  # arguments of `load` that do not go with a published decoder


def published_for(name: Any) -> list[Published]:
    """The published decoders of an encoder by its hub id, which costs no request."""
    return [pair for pair in _table() if pair.encoder == name]


def is_published(decoder: Any) -> bool:
    """Whether `decoder` asks for a published decoder: by the word, or by the hub id of one."""
    if decoder == PUBLISHED:
        return True
    return any(pair.decoder == str(decoder) for pair in _table()) and not Path(decoder).is_dir()


def published_id(model: "Autoencoder") -> str | None:
    """The hub id of the published decoder that a model was loaded with, if it was."""
    decoder = model.provenance.get("decoder") or {}
    return decoder.get("id") if decoder.get("kind") == PUBLISHED else None


def load_published(name: Any, decoder: str, revision: str | None, asked: Mapping[str, Any]) -> "Autoencoder":
    """Load an encoder with a decoder that was published for it.

    The weights of the encoder come from its own checkpoint, and of the decoder's repository only the decoder is used.
    With `random_weights` the encoder is random, and the decoder is not.

    Args:
        name: hub id of the encoder, or its folder where the decoder is named by its hub id.
        decoder: `PUBLISHED`, or the hub id of a published decoder.
        revision: branch, tag or commit of the encoder.
        asked: how the model is loaded, as fields of `Source`.

    Raises:
        InputError: the encoder has no published decoder, the two do not fit, or an argument does not go with them.
    """
    from fmprobe.digests import digest
    from fmprobe.fingerprint import of_files
    from fmprobe.hub import locate

    if not isinstance(name, str | Path):
        raise InputError("a published decoder belongs to an encoder by its hub id, and this one is in memory: name it")
    for key in UNUSED:
        if asked[key] is not None:
            raise InputError(f"{key} does not go with a published decoder: leave it out")
    family, adapter, pair = _chosen(str(name), decoder, asked["image_size"])
    adapter.check_installed(pair.decoder)
    checkpoints = locate(str(name), revision), locate(pair.decoder)
    checkpoints[0].check_revision(revision)
    files = [one.fetch_weights(file) for one, file in zip(checkpoints, (Adapter.weights, adapter.weights), strict=True)]
    sources = [
        Source(one.name, one.folder, one.commit, one.config, weights=tuple(weights), **asked)
        for one, weights in zip(checkpoints, files, strict=True)
    ]
    model = _paired(adapter, *sources)
    model.provenance["family"] = family
    drawn = [] if asked["random_weights"] is None else ["drawn", asked["random_weights"]]
    mark = digest(*(of_files(weights, one.config) for weights, one in zip(files, checkpoints, strict=True)), drawn)
    model.identify_by(lambda: mark)
    model.provenance |= {"fingerprint": mark, "decoder": _described(model, checkpoints[1])}
    return model


def _paired(adapter: Adapter, encoder: Source, decoder: Source) -> "Autoencoder":
    """The two sources as one model; an error of whatever kind becomes one line."""
    from fmprobe.modules import weights_drawn

    with weights_drawn(encoder.random_weights):
        try:
            return adapter.pair(encoder, decoder)
        except InputError:
            raise
        except Exception as error:  # a config that does not fit its weights may raise any kind
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise InputError(f"cannot use {decoder.name} as the decoder of {encoder.name}: {reason}") from error


def _described(model: "Autoencoder", decoder: "Checkpoint") -> dict[str, Any]:
    """What a provenance says of a published decoder, beside what its adapter says."""
    about = model.provenance.get("decoder") or {}
    return {**about, "kind": PUBLISHED, "id": decoder.name, "revision": decoder.commit}


def _chosen(name: str, decoder: str, image_size: Any) -> tuple[str, Adapter, Published]:
    """The family, the adapter and the table's entry of the decoder that is asked for."""
    from fmprobe.hub import canonical

    found = [pair for pair in _table() if decoder in (PUBLISHED, pair.decoder)]
    if decoder == PUBLISHED:
        found = [pair for pair in found if pair.encoder in (name, canonical(name))]
    if not found:
        have = ", ".join(dict.fromkeys(pair.encoder for pair in _table()))
        raise InputError(f"{name} has no published decoder: those that have one are {have}")
    if image_size not in (None, "fit") and image_size not in (sides := [pair.side for pair in found]):
        makes = " or ".join(map(str, sides))
        raise InputError(
            f"the published decoders of {name} make images of {makes} px, not {image_size}: choose {makes}"
        )
    pair = next((pair for pair in found if pair.side == image_size), found[0])
    family = next(family for family, adapter in adapters().items() if pair in adapter.published)
    return family, adapters()[family], pair


def _table() -> list[Published]:
    """All published decoders, of all families."""
    return [pair for adapter in adapters().values() for pair in adapter.published]
