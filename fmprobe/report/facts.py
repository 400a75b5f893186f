"""Protocol and provenance of a run as tables: what each entry is called, and a sentence that says what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmprobe.report.finished import FinishedRun
from fmprobe.tables import rounded

RUN_FACTS = ("command", "date", "device", "fmprobe", "total_seconds")

# By the key of results.json, with nested keys after a colon: the name, and what it is.
PROTOCOL = {
    "starts": ("starts", "What the orbits begin with."),
    "n": ("number of starts", "How many orbits were followed."),
    "max steps": ("largest number of steps", "An orbit that has not ended after so many applications of f is stopped."),
    "tol": ("tolerance", "An orbit has converged where its step, in the measure below, is smaller."),
    "measure": ("measure of a step", "How the size of a step is taken; squared is the square of its Euclidean norm."),
    "name": ("rule of ending", "The published protocol that was followed, or that options changed it."),
    "batch size": ("batch size", "How many latents go through the model at once. Results do not depend on it."),
    "merge": ("distance of ends", "The distance by which two ends count as one attractor."),
    "merge threshold": ("merge threshold", "Ends that are nearer count as one; a dash stands for the default."),
    "threshold": ("merge threshold", "Ends that are nearer count as one; a dash stands for the default."),
    "seed": ("seed", "The seed of everything that is drawn by chance."),
    "stability cap": ("attractors examined", "For at most so many attractors the spectral radius was computed."),
    "polish": ("polishing", "Whether, and how, attractors were taken nearer to their fixed points."),
    "seconds per row": ("time of a step, s", "Seconds that one latent takes through f, from which the plan was made."),
    "eps": ("distance that counts as arrived", "Euclidean distance to the attractor below which a start has arrived."),
    "n images": ("images of each set", "How many images each closed-form decoder is fitted to."),
    "cap": ("starts followed on", "For at most so many starts the Lyapunov exponent was measured."),
    "steps": ("steps", "How many steps were measured."),
    "burn in": ("steps that do not count", "So many steps come before the first that is measured."),
    "settles": ("share that settles", "Orbits settle at a capacity where at least this share of the starts does."),
    "data": ("images", "The images that were used."),
    "images": ("number of images", "How many images were used."),
    "fitted on": ("fitted on", "How many images the maps between the two latent spaces were fitted on."),
    "anchors": ("anchors", "How many images the relative representations refer to."),
    "shuffles": ("shuffles", "How many random pairings the null of the comparison averages over."),
    "weight noise": ("weight noise", "Size of the noise on the weights under which the ceiling is taken, relatively."),
    "models": ("models", "The two models that were compared."),
    "inputs": ("inputs", "How many inputs the ratio of spread is taken over."),
    "relative distance": ("distance of pairs", "How far apart the points of a pair are, relative to their norm."),
    "pairs a point": ("pairs a point", "How many neighbours of each point were followed."),
    "torch": ("torch", "The version of torch."),
    "distance": ("distance", "The distance between latents and the reference that the trajectory score takes."),
    "aggregate": ("aggregate", "How the distances along a trajectory become one score."),
    "labels": ("classes", "What holds the classes of the in-distribution images; one score needs them."),
    "identity": ("identity", "A digest of what decides the result."),
}
RULES = {
    "rate window": ("steps that a rate is taken over", "The rate of an orbit is taken over so many successive steps."),
    "fall window": (
        "steps that are looked at for a fall",
        "Whether a step still falls is judged by so many last steps.",
    ),
    "fall share": (
        "share of steps that must fall",
        "An orbit is slow where at least this share of these steps is smaller than before.",
    ),
    "fall blocks": (
        "blocks of a quarter of an orbit",
        "The error of a median comes from so many blocks of a quarter of the orbit.",
    ),
    "fall sigmas": (
        "standard errors between medians",
        "Two medians differ where they are so many standard errors apart.",
    ),
    "return share": (
        "largest return of a cycle, relative to its step",
        "A cycle comes back to within this share of its step.",
    ),
    "drift share": (
        "largest drift of a cycle, relative to its step",
        "A cycle drifts by at most this share of its largest step.",
    ),
    "cycle growth": (
        "growth from which a cycle repels",
        "A cycle in which a disturbance grows by more than this factor repels.",
    ),
    "divergence factor": (
        "growth of the norm that is divergence",
        "An orbit has diverged where its norm grew by more than this factor.",
    ),
    "floor factor": (
        "jitter that counts as rounding, in roundings of f",
        "A step below so many times the rounding of f counts as rounding.",
    ),
    "floor share": (
        "step below which rounding is measured, relative to the latent",
        "Rounding is measured where a step is below this share of the latent's norm.",
    ),
}
MODEL = {
    "id": ("model", "The name of the checkpoint, or of its folder."),
    "revision": ("revision", "The commit of the checkpoint on the hub; a dash where it came from elsewhere."),
    "dtype": ("precision", "The floating-point type in which f is computed."),
    "tokens": ("tokens", "Which tokens of the encoder make up a latent."),
    "prefix tokens": ("prefix tokens", "How many tokens, such as CLS, stand before those of the patches."),
    "space": ("latent space", "Where in the encoder a latent is taken, and how it is scaled."),
    "data free": ("without data", "Whether no real image was used, not even for a surrogate decoder."),
    "preprocessing": ("preprocessing", "How a picture becomes an input; a dash where the model takes none."),
    "preprocessing: mean": ("pixel mean", "What is subtracted from each channel of an image in [0, 1]."),
    "preprocessing: std": ("pixel deviation", "What each channel is then divided by."),
    "preprocessing: size": ("image side, px", "The side of the images that the processor makes."),
    "preprocessing: by": ("processor", "The image processor that is followed."),
    "preprocessing: resize": ("resized to, px", "The size that the processor resizes pictures to."),
    "preprocessing: crop": ("cropped to, px", "The size that the processor crops pictures to."),
    "preprocessing: resample": ("interpolation", "How the processor resizes: Pillow's number, 2 bilinear, 3 bicubic."),
    "family": ("family", "The adapter that loaded the model."),
    "fingerprint": ("fingerprint", "A digest of the weights and settings that decide what f computes."),
    "image shape": ("image", "Channels, height and width of an image."),
    "latent shape": ("latent", "The shape of a latent."),
}
DECODER = {
    "kind": ("kind", "Whether the decoder is the model's own, published for it, or a surrogate fitted here."),
    "id": ("decoder", "The name of the decoder."),
    "architecture": ("architecture", "What the surrogate is made of."),
    "blur": ("blur", "Deviation of the blur that the surrogate's images carry, as a share of the side."),
    "pictures": ("pictures", "The decoder that paints latents for the eye; it is no part of f."),
    "parameters": ("parameters", "How many numbers were fitted."),
    "image shape": ("image", "Channels, height and width of the images that it makes."),
    "seed": ("seed", "The seed of its first weights, of its images and of their order."),
    "data": ("fitted on", "The images that the surrogate was fitted on, and those held out."),
    "steps": ("training steps", "How many batches the surrogate was trained on."),
    "seconds": ("training time", "Seconds that fitting took."),
    "warning": ("warning", "Why the surrogate cannot be trusted, where that is so."),
}
ERRORS = {
    "feature error": "Relative error of the features of reconstructions.",
    "images": "How many images these errors were measured on.",
    "l1": "Mean absolute error a pixel of reconstructions, of images in [0, 1].",
    "l1 median": "The same error of each image's own median colour, which a decoder should stay below.",
}
RUN = {
    "command": ("command", "What was run."),
    "date": ("date", "When it ended, in UTC."),
    "device": ("device", "Where f was computed."),
    "fmprobe": ("fmprobe", "The version of fmprobe."),
    "total seconds": ("time", "Seconds of the attempt that finished, by the clock."),
}
KNOWN = {"protocol": PROTOCOL, "model": MODEL, "decoder": DECODER, "run": RUN}
TITLES = {"protocol": "Protocol", "model": "Model", "decoder": "Decoder", "run": "Run"}


@dataclass(frozen=True)
class Fact:
    """A row of a table of facts.

    Attributes:
        name: What it is called.
        meaning: What it is, in a sentence.
        values: Its value in each run.
    """

    name: str
    meaning: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.values)) > 1


def facts(runs: Sequence[FinishedRun]) -> dict[str, list[Fact]]:
    """Protocol, model, decoder and run as tables, by their titles."""
    tables = {}
    for key, title in TITLES.items():
        kept = [_of_run(run) if key == "run" else run.results.get(key) or {} for run in runs]
        rows = side_by_side([flattened(content) for content in kept])
        tables[title] = [Fact(*told(key, name), values) for name, values in rows]
    return tables


def told(table: str, name: str) -> tuple[str, str]:
    """What an entry of a table is called, and what it is. An entry that is not known keeps its name."""
    if (found := KNOWN[table].get(name)) is not None:
        return found
    outer, _, inner = name.partition(": ")
    if table == "protocol" and outer == "rules" and inner in RULES:
        return RULES[inner]
    if table == "protocol" and outer in ("ood", "data"):
        return f"images, {inner}", "The images of this set."
    if outer == "validation":
        images, _, error = inner.rpartition(": ")
        return f"{images or 'held out'}, {error}", ERRORS.get(error, "An error of the surrogate.")
    if f"{outer}: {inner.partition(': ')[0]}" in KNOWN[table]:  # such as the height of a size
        shorter, _, last = name.rpartition(": ")
        label, meaning = told(table, shorter)
        return f"{label}, {last}", meaning
    return name, ""


def side_by_side(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Rows of several runs by name, in the order in which the names first appear."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [(name, [rounded(row.get(name, "")) for row in rows]) for name in names]


def flattened(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping from "outer: inner" to the value."""
    if not isinstance(content, Mapping):
        return {prefix.removesuffix(": ") or "value": content}
    rows: dict[str, Any] = {}
    for key, value in content.items():
        rows |= flattened(value, f"{prefix}{key}: ".replace("_", " "))
    return rows


def _of_run(run: FinishedRun) -> dict[str, Any]:
    return {name: run.results.get(name) for name in RUN_FACTS}
