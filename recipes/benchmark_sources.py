"""Measure the peak memory of what reads many images: fits, scores and sources of up to 200,000 images.

    python recipes/benchmark_sources.py                        # tens of minutes on one core
    python recipes/benchmark_sources.py -n 500 5000 --parts read encode

Every measurement is a process of its own. The encoder is tiny, and the images have 8 pixels a side, so that the peak is
that of the path that they take. A source is a parquet file, which is written in pieces.

What an image more takes is told between the smallest and the largest number of images: of the process's own memory, and
of pages of files that it maps, which the system takes back when it needs room. An image has 192 values, which are 768
bytes as floats, and about 255 bytes in its file.
"""

import argparse
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import astuple, dataclass
from io import BytesIO
from pathlib import Path

import torch
from torch import multiprocessing as mp

import fmprobe
from fmprobe import demo
from fmprobe.autoencoder import Autoencoder
from fmprobe.seeding import generator, torch_generator
from fmprobe.sharing import alone

SIZES = [2_000, 20_000, 200_000]
SIDE, TOKENS, WIDTH = 8, 4, 16
PIECE = 1000  # rows of the source that are written at a time
LOOK = 0.02  # seconds between two looks at the memory
RESIDENT = {"VmHWM": "peak", "RssAnon": "own", "RssFile": "files"}  # lines of /proc/self/status


def tiny_encoder() -> Autoencoder:
    """A random linear map of the pixels to tokens, without a decoder."""
    weight = torch.randn(3 * SIDE**2, TOKENS * WIDTH, generator=torch_generator(0, "benchmark_sources recipe: weights"))
    return Autoencoder(
        lambda images: (images.flatten(1) @ weight).unflatten(1, (TOKENS, WIDTH)),
        None,
        image_shape=(3, SIDE, SIDE),
        latent_shape=(TOKENS, WIDTH),
        provenance={"model": "tiny"},
    )


def write_source(path: Path, n: int) -> None:
    """Write a parquet file of `n` small pictures of noise."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def cell(i: int) -> bytes:
        file = BytesIO()
        pixels = generator(0, i, "benchmark_sources recipe: pixels").integers(0, 256, (SIDE, SIDE, 3), dtype="uint8")
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()

    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())])) as writer:
        for first in range(0, n, PIECE):
            cells = [cell(i) for i in range(first, min(first + PIECE, n))]
            writer.write_table(pa.table({"image": pa.array(cells, pa.binary())}))


def a_detector(folder: Path) -> Path:
    """A detector of the demo model, fitted on its digits and saved."""
    model = fmprobe.load(str(Path(demo.__file__).parent / "vit-mae-digits"))
    images = demo.training_digits(10)[0]
    detector = fmprobe.TrajectoryDetector(model, rule="latent norm", max_steps=4)
    detector.fit(images[:64], images[64:], progress=False).save(folder / "detector")
    return folder / "detector"


def encode(source: str, n: int, folder: Path) -> None:
    """Encode what an iterator gives. All latents are the result."""
    model = tiny_encoder()
    model.encode((block for block in model.stream_images("procedural", n)), progress=False)


def read(source: str, n: int, folder: Path) -> None:
    """Read every image of a source."""
    assert sum(map(len, tiny_encoder().stream_images(source))) == n


def fit_procedural(source: str, n: int, folder: Path) -> None:
    """Fit a closed-form decoder to procedural images."""
    fmprobe.fit_decoder(tiny_encoder(), kind="closed-form", k=8, n_images=n, progress=False)


def fit_source(source: str, n: int, folder: Path) -> None:
    """Fit a linear decoder to the images of a source."""
    fmprobe.fit_decoder(tiny_encoder(), source, kind="linear", progress=False)


def score(source: str, n: int, folder: Path) -> None:
    """Score a source in Python."""
    detector = fmprobe.TrajectoryDetector.load(a_detector(folder))
    assert len(detector.score_samples(source)) == n


def score_command(source: str, n: int, folder: Path) -> None:
    """Score a source as `fmprobe score` does."""
    from fmprobe.probes.score import score as command

    command(a_detector(folder), source, folder / "scores", device="cpu")


PARTS: dict[str, Callable[[str, int, Path], None]] = {
    "read": read,
    "fit-procedural": fit_procedural,
    "fit-source": fit_source,
    "encode": encode,
    "score": score,
    "score-command": score_command,
}


@dataclass(frozen=True)
class Found:
    """What a process took.

    Attributes:
        peak: largest resident memory, in bytes.
        own: of it, the largest amount that is not of files, as far as was seen.
        files: likewise, pages of files, the libraries among them.
        seconds: processor seconds.
    """

    peak: int
    own: int
    files: int
    seconds: float


def resident() -> dict[str, int]:
    """The largest resident memory of this process so far, and its parts now, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: 1024 * int(lines[line].split()[0]) for line, name in RESIDENT.items()}


def watched(run: Callable[[], None]) -> Found:
    """Run something, and look at the memory all the while."""
    seen, over, began = [resident()], threading.Event(), time.process_time()

    def watch() -> None:
        while not over.wait(LOOK):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    run()
    seconds = time.process_time() - began
    over.set()
    thread.join()
    seen.append(resident())
    peak, own, files = (max(one[name] for one in seen) for name in RESIDENT.values())
    return Found(peak, own, files, seconds)


def work(part: str, source: str, n: int, folder: str, found: "mp.Queue") -> None:
    """Run one part as a process, with caches of its own."""
    os.environ |= dict.fromkeys(("XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE"), folder)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        taken = watched(lambda: PARTS[part](source, n, Path(folder)))
    found.put(astuple(taken))


def measure(part: str, source: Path, n: int) -> Found:
    """What a part takes in a process of its own."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        found = context.Queue()
        process = context.Process(target=work, args=(part, f"{source}#image", n, folder, found))
        process.start()
        taken = None
        while taken is None and (process.is_alive() or not found.empty()):
            with suppress(queue.Empty):
                taken = found.get(timeout=1)
        process.join()
    assert taken is not None, f"{part} of {n} images failed"
    return Found(*taken)


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--images", type=int, nargs="+", default=SIZES, help="Numbers of images.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="What to measure.")
    options = parser.parse_args()
    sizes = sorted(options.images)
    with tempfile.TemporaryDirectory() as folder:
        sources = {n: Path(folder) / f"{n}.parquet" for n in sizes}
        for n, path in sources.items():
            write_source(path, n)
        print("| part | images | peak MB | own MB | of files MB | processor seconds |\n|---|---|---|---|---|---|")
        for part in options.parts:
            found = {}
            for n, path in sources.items():
                one = found[n] = measure(part, path, n)
                megabytes = " | ".join(f"{value / 1e6:.0f}" for value in (one.peak, one.own, one.files))
                print(f"| {part} | {n:,} | {megabytes} | {one.seconds:.0f} |", flush=True)
            first, last = found[sizes[0]], found[sizes[-1]]
            own, files = (
                (b - a) / max(1, sizes[-1] - sizes[0]) for a, b in ((first.own, last.own), (first.files, last.files))
            )
            print(f"{part}: {own:.0f} bytes an image of its own, {files:.0f} of files", flush=True)


if __name__ == "__main__":
    main()
