"""PatchDecoder: pixels from the tokens of an encoder that has no decoder of its own."""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError

SIZES = {"tiny": (2, 192), "small": (4, 256), "base": (8, 512), "large": (12, 768)}  # layers, width
HEAD_WIDTH = 64
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SPACE = "standardised by the mean and deviation a channel of the surrogate's training features"

CARD = """---
library_name: fmprobe
license: apache-2.0
tags: [fmprobe, surrogate-decoder]
---

# Surrogate decoder for {model}

A {architecture} ({parameters:,} parameters) from standardised tokens {latent_shape} to images {image_shape}, so that
the latent map f(z) = E(D(z)) of an encoder without a decoder exists. What f does is this decoder's doing as much as
the encoder's.

Encoder: `{model}`, revision `{revision}`, fingerprint `{fingerprint}`. Training data: {data}.

| held-out images | number | L1 | L1 of each image's own median | feature error |
|---|---|---|---|---|
{rows}
```python
model = fmprobe.load("{model}", image_size={side}, decoder=THIS_FOLDER)
```
"""


class PatchDecoder(nn.Module, PyTorchModelHubMixin):
    """A transformer from standardised tokens `(B, N, D)` to images `(B, C, H, W)` in `[0, 1]`, by a sigmoid.

    `latent_mean` and `latent_std`, `(D,)`, are the statistics that standardise the encoder's native tokens. `info` is
    a JSON-ready dict: the encoder it was made for, its training data, seed, steps, seconds and validation figures.
    Raises InputError for a size that is not in `SIZES` or shapes that are not a square grid of tokens and patches.
    """

    latent_mean: Tensor
    latent_std: Tensor
    positions: Tensor

    def __init__(
        self,
        latent_shape: Sequence[int],
        image_shape: Sequence[int],
        size: str = "small",
        info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise InputError(f"unknown decoder size {size!r}: expected one of {', '.join(SIZES)}")
        self.grid, self.patch = patch_grid(latent_shape, image_shape)
        self.latent_shape, self.image_shape, self.size = tuple(latent_shape), tuple(image_shape), size
        self.info: dict[str, Any] = dict(info or {})
        layers, width = SIZES[size]
        channels = latent_shape[1]
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))
        self.register_buffer("positions", _sincos(self.grid, width), persistent=False)
        self.embed = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_pixels = nn.Linear(width, image_shape[0] * self.patch**2)
        nn.init.normal_(self.to_pixels.weight, std=0.02)
        nn.init.zeros_(self.to_pixels.bias)  # grey

    def forward(self, latents: Tensor) -> Tensor:
        """Images `(B, C, H, W)` of standardised tokens `(B, N, D)`; twice differentiable under SDPBackend.MATH."""
        x = self.embed(latents) + self.positions
        for block in self.blocks:
            x = block(x)
        # Pixels cannot leave [0, 1]: what f feeds to the encoder stays within what an encoder knows, and f is smooth.
        patches = torch.sigmoid(4 * self.to_pixels(self.norm(x)))
        g, p, c = self.grid, self.patch, self.image_shape[0]
        image = patches.reshape(-1, g, g, c, p, p).permute(0, 3, 1, 4, 2, 5)
        return image.reshape(-1, c, g * p, g * p)

    def describe(self) -> dict[str, Any]:
        """What `Autoencoder.with_decoder` adds to the provenance: the latent space, and the decoder with its error."""
        layers, width = SIZES[self.size]
        return {
            "space": SPACE,
            "data_free": bool(self.info.get("data_free", False)),
            "decoder": {
                "kind": "surrogate",
                "architecture": f"patch transformer, {layers} layers x {width}",
                "parameters": sum(p.numel() for p in self.parameters()),
                "image_shape": list(self.image_shape),
                **{key: self.info.get(key) for key in ("data", "seed", "steps", "seconds", "validation")},
            },
        }

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and a model card into `folder`, whole or not at all.

        An earlier decoder there is replaced. Raises InputError where `folder` holds other things or cannot be written.
        """
        target = Path(folder)
        if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / CONFIG).is_file()):
            raise InputError(f"{target} exists and is not a decoder's folder: choose another one")
        scratch = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            self.save_pretrained(scratch / "new")
            if target.exists():
                target.rename(scratch / "old")
            (scratch / "new").rename(target)
        except OSError as error:
            raise InputError(f"cannot write the decoder to {target}: {error.strerror or error}") from error
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    @classmethod
    def load(cls, path_or_id: str | Path, model: Autoencoder) -> "PatchDecoder":
        """The decoder in a folder that `save` wrote, or of a hub id, on `model`'s device; safetensors alone.

        Raises InputError where it is missing or damaged, was made for another encoder, or for other shapes.
        """
        folder = _fetch(path_or_id)
        config = read_config(folder)
        _check_fits(config, model, str(path_or_id))
        try:
            if config.pop("weights_sha256") != _sha256(folder / WEIGHTS):
                raise InputError(f"{path_or_id} is damaged (its weights have changed): fit the decoder again")
            state = load_file(folder / WEIGHTS)
            with torch.random.fork_rng(devices=[]):  # the initial weights that are replaced draw random numbers
                decoder = cls(**config)
            decoder.load_state_dict(state)
        except InputError:
            raise
        except Exception as error:  # OSError, SafetensorError, RuntimeError of a state dict that does not fit
            raise InputError(f"{path_or_id} is damaged ({_first_line(error)}): fit the decoder again") from error
        return decoder.requires_grad_(False).eval().to(model.device)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        config = {
            "latent_shape": list(self.latent_shape),
            "image_shape": list(self.image_shape),
            "size": self.size,
            "info": self.info,
            "weights_sha256": _sha256(save_directory / WEIGHTS),  # safetensors has no checksum
        }
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (save_directory / "README.md").write_text(self._card(), encoding="utf-8")

    @classmethod
    def _load_as_pickle(cls, *_: Any, **__: Any) -> Any:
        raise InputError("the repository holds no model.safetensors, and pickled weights are not read")

    def _card(self) -> str:
        info, decoder = self.info, self.describe()["decoder"]
        rows = "".join(
            f"| {name} | {row['images']} | {row['l1']:.4f} | {row['l1_median']:.4f} | {row['feature_error']:.3f} |\n"
            for name, row in (info.get("validation") or {}).items()
        )
        return CARD.format(
            model=info.get("model", "an encoder"),
            revision=info.get("revision"),
            fingerprint=info.get("fingerprint"),
            data=info.get("data"),
            architecture=decoder["architecture"],
            parameters=decoder["parameters"],
            latent_shape=self.latent_shape,
            image_shape=self.image_shape,
            side=self.image_shape[-1],
            rows=rows,
        )


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = x + self.out(mixed)
        return x + self.shrink(F.gelu(self.grow(self.norm2(x))))


def patch_grid(latent_shape: Sequence[int], image_shape: Sequence[int]) -> tuple[int, int]:
    """Tokens and pixels of a patch, both a side, of tokens `(N, D)` on images `(C, H, H)`; InputError if none."""
    if len(latent_shape) != 2 or len(image_shape) != 3:
        raise InputError(
            f"a pixel decoder takes tokens (N, D) and images (C, H, W), got latents {tuple(latent_shape)} and images "
            f"{tuple(image_shape)}"
        )
    side, width, grid = image_shape[1], image_shape[2], math.isqrt(latent_shape[0])
    if grid == 0 or grid**2 != latent_shape[0]:
        raise InputError(f"a pixel decoder takes a square grid of tokens, got {latent_shape[0]} tokens")
    if side != width or side % grid:
        raise InputError(f"a grid of {grid} x {grid} tokens does not divide images of {side} x {width} pixels")
    return grid, side // grid


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a saved decoder: `latent_shape`, `image_shape`, `size`, `info` and a hash; InputError if none."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no decoder ({CONFIG} is missing): write one with fit-decoder") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}): fit the decoder again") from error
    expected = {"latent_shape": list, "image_shape": list, "size": str, "info": dict, "weights_sha256": str}
    if not isinstance(config, dict) or any(not isinstance(config.get(k), kind) for k, kind in expected.items()):
        raise InputError(f"{path} does not describe a patch decoder: expected the folder that fit-decoder wrote")
    return {key: config[key] for key in expected}


class Recorded(NamedTuple):
    """How an encoder was loaded when a decoder was made for it."""

    image_size: int
    tokens: Any


def recorded(path_or_id: str | Path) -> Recorded:
    """The image size and the tokens that a saved decoder was made for. Raises InputError where there is none."""
    config = read_config(_fetch(path_or_id))
    return Recorded(int(config["image_shape"][-1]), config["info"].get("tokens"))


def _fetch(path_or_id: str | Path) -> Path:
    """The local folder of a path or a hub id; two files are fetched, neither of them a pickle."""
    text = str(path_or_id)
    if Path(text).is_dir():
        return Path(text)
    if isinstance(path_or_id, Path) or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(
            f"there is no decoder at {text}: expected a folder that fit-decoder wrote, or a hub id ORG/NAME"
        )
    from huggingface_hub import hf_hub_download

    try:
        config = hf_hub_download(text, CONFIG, etag_timeout=10)
        # The commit of the first file, so that the two belong together.
        hf_hub_download(text, WEIGHTS, revision=Path(config).parent.name, etag_timeout=10)
    except Exception as error:  # the hub client's many kinds, all of which mean that it is not to be had
        raise InputError(
            f"there is no decoder at {text}: no such folder, and the hub says: {_first_line(error)}"
        ) from error
    return Path(config).parent


def _check_fits(config: dict[str, Any], model: Autoencoder, name: str) -> None:
    info = config["info"]
    if info.get("fingerprint") != model.provenance.get("fingerprint"):
        raise InputError(
            f"{name} was made for another encoder ({info.get('model')}, {str(info.get('fingerprint'))[:12]}) than "
            f"{model.name} ({str(model.provenance.get('fingerprint'))[:12]}): fit a decoder for this one"
        )
    for what, mine in (("image_shape", model.image_shape), ("latent_shape", model.latent_shape)):
        theirs = tuple(config[what])
        if theirs != mine:
            raise InputError(
                f"{name} was made for {what.replace('_', ' ')} {theirs}, {model.name} is loaded with {mine}: load it "
                f"with image_size={cast(list, config['image_shape'])[-1]}, or fit a decoder at this size"
            )


def _sincos(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine embedding `(grid**2, width)` (Vaswani et al. 2017, one half of the width an axis)."""
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid**2, width).float()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
