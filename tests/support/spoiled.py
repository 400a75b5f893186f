"""Things that no command should swallow: broken checkpoints, images, decoders, detectors and run folders."""

import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
from PIL import Image

Change = Callable[[Path], object]


def spoiled_checkpoints(good: Path, place: Path) -> None:
    """Copies of a ViT-MAE checkpoint, one damage each, named by it."""
    changes: dict[str, Change] = {
        "no-config": lambda folder: (folder / "config.json").unlink(),
        "config-cut": lambda folder: cut(folder / "config.json"),
        "config-empty": lambda folder: (folder / "config.json").write_text(""),
        "config-list": lambda folder: (folder / "config.json").write_text("[]"),
        "config-binary": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config-nested": lambda folder: (folder / "config.json").write_text("[" * 100_000),
        "no-type": lambda folder: edit(folder / "config.json", model_type=None, architectures=None),
        "unknown-type": lambda folder: edit(folder / "config.json", model_type="vit_mea"),
        "own-code": lambda folder: edit(folder / "config.json", model_type="x", auto_map={"AutoModel": "evil.Evil"}),
        "huge-width": lambda folder: edit(folder / "config.json", hidden_size=10**12),
        "many-layers": lambda folder: edit(folder / "config.json", num_hidden_layers=10**6),
        "negative-layers": lambda folder: edit(folder / "config.json", num_hidden_layers=-1),
        "no-patch": lambda folder: edit(folder / "config.json", patch_size=0),
        "odd-heads": lambda folder: edit(folder / "config.json", num_attention_heads=5),
        "other-width": lambda folder: edit(folder / "config.json", hidden_size=48),
        "text-for-a-number": lambda folder: edit(folder / "config.json", hidden_size="wide"),
        "weights-cut": lambda folder: cut(folder / "model.safetensors"),
        "weights-empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "weights-text": lambda folder: (folder / "model.safetensors").write_bytes(b"these are no weights at all"),
        "weights-long-header": lambda folder: (folder / "model.safetensors").write_bytes(pack("<Q", 2**60) + b"{}"),
        "weights-missing": lambda folder: (folder / "model.safetensors").unlink(),
        "weights-nan": lambda folder: _each_tensor(folder, lambda tensor: tensor * float("nan")),
        "weights-fewer": _fewer_tensors,
        "pickle": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "index-outside": lambda folder: _index(folder, "../mae/model.safetensors"),
        "index-missing": lambda folder: _index(folder, "model-00001-of-00002.safetensors"),
        "index-pickle": lambda folder: _index(folder, "model.bin"),
        "index-empty": lambda folder: _index(folder, None),
        "processor-cut": lambda folder: cut(folder / "preprocessor_config.json"),
        "processor-list": lambda folder: (folder / "preprocessor_config.json").write_text("[1]"),
    }
    for name, change in changes.items():
        shutil.copytree(good, place / name)
        change(place / name)


# Damages of a finished run's folder, by the name of the copy.
RUNS: dict[str, Change] = {
    "run_manifest_cut": lambda folder: cut(folder / "manifest.json"),
    "run_results_cut": lambda folder: cut(folder / "results.json"),
    "run_results_list": lambda folder: (folder / "results.json").write_text("[]"),
    "run_results_schema": lambda folder: edit(folder / "results.json", schema=99),
    "run_results_odd": lambda folder: edit(folder / "results.json", attractors="none"),
    "run_results_bare": lambda folder: (folder / "results.json").write_text('{"schema": 1}'),
    "run_attractors_cut": lambda folder: cut(folder / "attractors" / "attractors.safetensors"),
    "run_attractors_gone": lambda folder: shutil.rmtree(folder / "attractors"),
    "run_attractors_other": lambda folder: _other_attractors(folder / "attractors"),
    "run_pictures_cut": lambda folder: [cut(path) for path in folder.rglob("*.png")],
    "run_link": lambda folder: _linked(folder / "results.json"),
}


def spoiled_images(place: Path) -> None:
    """Sources that hold no images, damaged ones, or none of the kind expected."""
    picture = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    stored = io.BytesIO()
    picture.save(stored, "png")
    files: dict[str, dict[str, bytes]] = {
        "empty": {},
        "one": {"a.png": stored.getvalue()},
        "text": {"a.txt": b"no picture", "b.csv": b"1,2"},
        "zero-size": {"a.png": b""},
        "cut": {"a.png": stored.getvalue()[:60]},
        "mislabelled": {"a.png": b"<html>this is a page</html>"},
        "bomb": {"a.png": bomb()},
        "no-pixels": {"a.png": _png(0, 0)},
        "damaged-parquet": {"a.parquet": b"PAR1 and then nothing"},
    }
    for name, contents in files.items():
        (place / name).mkdir(parents=True)
        for file, content in contents.items():
            (place / name / file).write_bytes(content)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (80, 16, 16, 3), dtype=np.uint8)
    arrays: dict[str, Any] = {
        "good": pictures,
        "flat": np.zeros(9, np.uint8),
        "five": np.zeros((2, 2, 2, 2, 3), np.uint8),
        "signed": np.zeros((4, 8, 8), np.int32),
        "outside": np.full((4, 8, 8), 7.0),
        "not-finite": np.full((4, 8, 8), np.nan),
        "none": np.zeros((0, 8, 8, 3), np.uint8),
        "objects": np.array([{"a": 1}, None], dtype=object),
    }
    for name, array in arrays.items():
        np.savez(place / f"{name}.npz", x=array, allow_pickle=True)
    (place / "text.npz").write_bytes(b"no archive")
    np.savez(place / "cut.npz", x=pictures)
    cut(place / "cut.npz")


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 50,000 pixels a side."""
    return _png(50_000, 50_000)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return pack(">I", len(content)) + name + content + pack(">I", zlib.crc32(name + content))

    header = pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _each_tensor(folder: Path, change: Callable[[Any], Any]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def _fewer_tensors(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "decoder" not in name}
    save_file(kept, path, metadata={"format": "pt"})


def _other_attractors(folder: Path) -> None:
    """Those of another map, in a latent space of two values."""
    import torch

    import fmprobe

    starts = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    fmprobe.find_attractors(lambda z: z / 2, starts=starts, progress=False).save(folder)


def _linked(path: Path) -> None:
    """The file lies outside its folder, and a link in its place."""
    outside = path.parents[1] / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)


def _index(folder: Path, shard: str | None) -> None:
    (folder / "model.safetensors").rename(folder / "elsewhere.safetensors")
    names = {} if shard is None else {"weight": shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
