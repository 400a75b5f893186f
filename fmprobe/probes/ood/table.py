"""The table of all out-of-distribution scores, and every list that derives from it.

A new score is one file in `scores/`, which holds a tuple `SCORES`, and one line in `FILES`.
"""

from collections.abc import Container, Iterable
from importlib import import_module

from fmprobe.probes.ood.score import Bank, Needs, Score

# Files of `scores/`. Scores of one group follow one another in this order.
FILES = (
    "distances",
    "path",
    "contraction_ratio",
    "autoencoder",
    "knn",
    "mahalanobis",
    "pca",
    "vim",
    "relative",
    "pixels",
)

# The groups of a table in their order, with their headings. Scores of the group "inner" are in no table: they are
# statistics that enter the profile, and a low value of them does not mean in-distribution.
GROUPS = {
    "trajectory": "the published score",
    "part": "parts of it, each alone",
    "baseline": "baselines on the same features",
    "image": "statistics of the images alone, without the model",
    "two-sided": "distance from what is usual, on either side",
    "profile": "one-class models of baselines, of the trajectory profile, and of baselines with the published score",
}

SCORES: tuple[Score, ...] = tuple(
    score for file in FILES for score in import_module(f"fmprobe.probes.ood.scores.{file}").SCORES
)
BY_NAME = {score.name: score for score in SCORES}

# What the score "trajectory" can be made of, by `TrajectorySettings.aggregate`.
AGGREGATES = tuple(score.name for score in SCORES if score.group == "part")

# Scores that are learned from held-out images: "two-sided NAME" by the name of the score that it is made of, and two
# one-class models, a Gaussian and a support vector machine, of each vector of columns. "joined" has the published
# score and the baselines that help, "features" those of its columns that follow no orbit.
TWO_SIDED = {f"two-sided {score.name}": score.name for score in SCORES if score.two_sided}
VECTORS = ("features", "profile", "joined")
MODELS = ("", " svm")


def profile_of(names: Container[str]) -> tuple[str, ...]:
    """The columns of the profile, among the scores with these names."""
    columns = [score for score in SCORES if score.in_profile is not None and score.name in names]
    return tuple(score.name for score in sorted(columns, key=lambda score: score.in_profile or 0))


def joined_of(names: Container[str], bank: Bank) -> tuple[str, ...]:
    """The columns of the joined vector, among the scores with these names."""
    columns = [score for score in SCORES if score.name in names and score.in_joined is not None and score.joins(bank)]
    return tuple(score.name for score in sorted(columns, key=lambda score: score.in_joined or 0))


def features_of(names: Iterable[str]) -> tuple[str, ...]:
    """The columns of the vector of features: those of the joined vector that follow no orbit."""
    return tuple(name for name in names if BY_NAME[name].needs is not Needs.ORBIT)


def _offered() -> dict[str, str]:
    """The group of each score by its name, in the order of tables. The first point's distance leads its group."""
    led = sorted(SCORES, key=lambda score: score.needs is not Needs.FIRST_POINT)
    plain = {score.name: group for group in GROUPS for score in led if score.group == group}
    one_class = [f"{vector}{model}" for vector in VECTORS for model in MODELS]
    return {
        "trajectory": "trajectory",
        **plain,
        **dict.fromkeys(TWO_SIDED, "two-sided"),
        **dict.fromkeys(one_class, "profile"),
    }


# Every score that a detector can offer, in tables and as the rule that decides, with its group.
OFFERED = _offered()
