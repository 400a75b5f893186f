"""The claims of the paper that recipes test, the rule of agreement of each, and the runs that their figures come from.

A rule is written here, and as a sentence in the docstring of its recipe, before the run.
"""

from dataclasses import dataclass
from pathlib import PurePath

from _rules import Mean, RankCorrelation, Rule, Share, SignTest

COLUMNS = tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One command, whose figures several claims share.

    Attributes:
        command: the command at the size that carries the claims.
        cost: what that takes, as estimated from a smaller run.
        reduced: a command that gives a first answer in minutes; None where there is no smaller run.
        by: columns by which a table of the figures is grouped.
        shown: columns of that table: means over the rows of a group.
        split: a column by whose values each of those columns is split into several.
        measurable: whether `evidence.py` can run the command and gather its figures.
    """

    command: str
    cost: str
    reduced: str | None = None
    by: COLUMNS = ()
    shown: COLUMNS = ()
    split: str | None = None
    measurable: bool = True

    @property
    def recipe(self) -> str:
        """The script of the command, without its ending."""
        return PurePath(self.command.split()[1]).stem


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, or a question beside it ("published" is then a dash).

    Attributes:
        text: the claim as a sentence.
        figure: where the paper makes it.
        published: what the paper reports.
        run: name of the run in `RUNS`.
        rule: what decides; None where only an eye can.
    """

    text: str
    figure: str
    published: str
    run: str
    rule: Rule | None


DATA = "--data ../shared/data"
SEEDS = "--seeds 0 1 2"
TEN = "--seeds 0 1 2 3 4 5 6 7 8 9"
ALL_SETS = "--sets digits mnist fashion_mnist cifar10"
GPU = "not known: it needs the hub and an accelerator"

FIVE = "--seeds 0 1 2 3 4"
SEEDS_OF_SPLITS = "--seeds 3"
DINOV2 = "../shared/models/dinov2-small"
ENCODERS = f"{DINOV2} ../shared/models/efficientnet-lite1"
WEIGHTS = "demo taef2 dinov2 mae-cifar10 mae-mnist"
OOD_SHOWN = (
    "AUROC of the trajectory",
    "of its first point",
    "of KNN over all images",
    "of the features",
    "of the best single score",
    "accepted share",
)

MEMORIZATION = f"python recipes/memorization.py {DATA}"
TRAINING = f"python recipes/training_dynamics.py {DATA} {FIVE}"
CONVERGENCE = f"python recipes/convergence.py {DATA} {ALL_SETS} --widths 8 16 {SEEDS}"
SMALL = "--width 8 --images 1000"

# Costs are estimated from 15 ms of a core for a training step of width 16, and from the smaller runs.
RUNS = {
    "memorization": Run(
        f"{MEMORIZATION} --ks 2 4 8 16 32 64 128 256 512 {SEEDS} --images 12000 --steps 37600 --patience 10"
        " --starts 256",
        "about 10 hours, at most 14",
        f"{MEMORIZATION} --ks 2 16 128 {SEEDS} {SMALL} --steps 1500 --patience 15 --starts 64 --max-steps 500",
        by=("set", "k"),
        shown=(
            "epochs",
            "test error",
            "settled",
            "attractors",
            "coefficient",
            "test images",
            "mean image",
            "rank",
            "coefficient of noise starts",
        ),
    ),
    "overfitting": Run(
        f"{MEMORIZATION} --vary-images {SEEDS} --images 12000 --steps 6000 --starts 256",
        "about 2 hours",
        f"{MEMORIZATION} --sets mnist --vary-images {SEEDS} {SMALL} --steps 800 --starts 64 --max-steps 500",
        by=("set", "images"),
        shown=("test error", "settled", "attractors", "coefficient", "test images", "rank"),
    ),
    "training": Run(
        f"{TRAINING} --images 12000 --steps 12000 --starts 1000",
        "about 5 hours",
        f"{TRAINING} {SMALL} --steps 1200 --starts 48",
        by=("set", "seed"),
        shown=(
            "attractors from train at the end",
            "attractors from test at the end",
            "attractors from noise at the end",
            "mean lead of training over noise attractors",
            "correlation of rank and epoch",
        ),
    ),
    "demo": Run(
        "python recipes/train_demo_model.py --examine fmprobe/demo/vit-mae-digits",
        "about a minute",
        by=("seed",),
        shown=("converged", "attractors", "training digits", "spectral_radius_max"),
    ),
    "convergence": Run(
        f"{CONVERGENCE} --images 1400 --steps 12000",
        "about 90 minutes",
        f"{CONVERGENCE} --images 1000 --steps 800 --starts 100",
        by=("set", "starts"),
        shown=(
            "attractors",
            "correlation by the spectral norm",
            "slope by the spectral norm",
            "correlation by the spectral radius",
            "slope by the spectral radius",
        ),
    ),
    "contraction": Run(
        "python recipes/contraction.py --full",
        "about 5 hours",
        "python recipes/contraction.py --seeds 10",
        by=("backbone",),
        shown=("ratio",),
        split="output",
    ),
    "alignment": Run(
        f"python recipes/alignment.py {DATA} --ks 2 8 32 --seeds 0 3 6 9 12 15 18 21 24 27",
        "about 2.5 hours",
        "python recipes/alignment.py --images 1000 --width 8 --steps 600 --seeds 0 3 6 9 12",
        by=("map", "k"),
        shown=("cosine", "cosine of the null", "cosine of the ceiling", "adjusted Rand"),
    ),
    "alignment-across": Run(
        f"python recipes/alignment.py --across {DATA} --ks 2 8 32 --seeds 0 3 6 9 12 15 18 21 24 27",
        "about 2.5 hours",
        "python recipes/alignment.py --across --images 1000 --width 8 --steps 600 --seeds 0 3 6 9 12",
        by=("map", "k"),
        shown=("cosine", "cosine of the null", "cosine of the ceiling", "adjusted Rand"),
    ),
    "residuals-demo": Run(
        "python recipes/residual_curves.py --starts 500 --steps 300",
        "about a minute",
        by=("curve",),
        shown=("fall", "growth"),
    ),
    "residuals-local": Run(
        "python recipes/residual_curves.py --assets ../shared --starts 50 --steps 300 --image-size 112",
        "about an hour",
        "python recipes/residual_curves.py --assets ../shared --starts 12 --steps 60 --image-size 56",
        by=("curve",),
        shown=("fall", "growth"),
    ),
    "residuals-full": Run("python recipes/residual_curves.py --full --data ILSVRC/imagenet-1k:validation", GPU),
    "field": Run(
        f"python recipes/vector_field.py {DATA} --set mnist {TEN}",
        "about 15 minutes",
        f"python recipes/vector_field.py {TEN} --resolution 15 --frames 2",
        by=("seed",),
        shown=("attractors",),
    ),
    "capacity": Run(
        f"python recipes/capacity.py --encoders {ENCODERS} {FIVE}",
        "about an hour",
        by=("encoder", "k", "set"),
        shown=("exponent", "of random weights", "settled", "attractors", "below the median colour"),
    ),
    "weights-local": Run(
        f"python recipes/weight_probing.py --assets ../shared --models {WEIGHTS} --images 16 --atoms 1 4 16 {FIVE}",
        "about an hour",
        by=("model", "set"),
        shown=(
            "atoms",
            "D(E(x))",
            "image MSE of attractors",
            "image MSE of basis",
            "latent MSE of attractors",
            "latent MSE of basis",
        ),
    ),
    "weights": Run("python recipes/weight_probing.py --full", GPU),
    "weights-xl": Run(
        "fmprobe weights stabilityai/sdxl-vae -n 4096 --images 500 --data ILSVRC/imagenet-1k:validation",
        GPU,
        measurable=False,
    ),
    "ood-demo": Run(
        "python recipes/ood_detection.py --seeds 5",
        "about 3 minutes",
        by=("set",),
        shown=OOD_SHOWN,
    ),
    "ood-mae": Run(
        f"python recipes/ood_detection.py --train-mae ../shared/data {SEEDS_OF_SPLITS} --images 240",
        "about 20 minutes",
        by=("set",),
        shown=OOD_SHOWN,
    ),
    "ood-dinov2": Run(
        f"python recipes/ood_detection.py --encoder {DINOV2} --sets ../shared/data {SEEDS_OF_SPLITS}",
        "about 40 minutes",
        by=("set",),
        shown=OOD_SHOWN,
    ),
    "ood": Run("python recipes/ood_detection.py --full --seeds 5", GPU),
    "prototypes": Run("fmprobe prototypes stabilityai/sd-vae-ft-mse -n 4096 -o prototypes", GPU, measurable=False),
}

ABOVE_KNN = "AUROC of the trajectory above that of KNN over all images"
BELOW = "ratio below 1"
CHAOTIC = "with all features, A and B chaotic and the null 3 standard errors away"
IMAGES_BELOW = "image MSE below that of the basis at every number of atoms"
NEAR_BEST = "AUROC of the features at most 2 points below the best single score of the set"
FALLS = "residual falls tenfold at norms that stay bounded"
CLAIMS = {
    "fields-differ": Claim(
        "The field and its attractors differ with the initialisation.",
        "fig. 1",
        "they differ",
        "field",
        Share("number unlike that of the first seed", unit="seed"),
    ),
    "coefficient-falls-with-k": Claim(
        "The memorization coefficient falls with k.",
        "fig. 2",
        "it falls",
        "memorization",
        RankCorrelation("k", "coefficient", -1, by="set"),
    ),
    "error-falls-with-k": Claim(
        "The test error falls with k.",
        "fig. 2",
        "it falls",
        "memorization",
        RankCorrelation("k", "test error", -1, by="set"),
    ),
    "coefficient-rises-with-error": Claim(
        "Networks that generalize less memorize more: the direction of figure 2.",
        "fig. 2",
        "the coefficient rises with the test error",
        "memorization",
        RankCorrelation("test error", "coefficient", 1, by="set"),
    ),
    "above-the-mean-image": Claim(
        "Attractors are nearer to a training image than the mean training image is.",
        "fig. 2",
        "–",
        "memorization",
        SignTest("coefficient less that of the mean image", by="set"),
    ),
    "above-test-images": Claim(
        "Attractors are nearer to a training image than test images are.",
        "fig. 2",
        "–",
        "memorization",
        SignTest("coefficient less that of the test images", by="set"),
    ),
    "rank-grows-with-k": Claim(
        "The rank of the decoded attractors grows with k.",
        "fig. 13",
        "it grows with generalization",
        "memorization",
        RankCorrelation("k", "rank", 1, by="set"),
    ),
    "bound-as-printed": Claim(
        "The generalization bound holds as printed, for all images of a network.",
        "prop. 3.2",
        "it holds",
        "memorization",
        Share("bound as printed", more_than=0.9),
    ),
    "coefficient-falls-with-images": Claim(
        "Fewer training images give more memorization.",
        "fig. 14",
        "they do (k = 128)",
        "overfitting",
        RankCorrelation("images", "coefficient", -1, by="set"),
    ),
    "excess-falls-with-images": Claim(
        "The same, less what test images come to: that grows with the images by itself.",
        "fig. 14",
        "–",
        "overfitting",
        RankCorrelation("images", "coefficient less that of the test images", -1, by="set"),
    ),
    "few-images-are-attractors": Claim(
        "The attractors of a network that is trained on few images are training images (demo model, 30 digits).",
        "fig. 14",
        "fewer images, more memorization",
        "demo",
        Share("every attractor is a training digit", unit="seed"),
    ),
    "one-at-epoch-0": Claim(
        "There is one attractor at epoch 0, from every kind of start.",
        "fig. 3",
        "one",
        "training",
        Share("one attractor at epoch 0", unit="seed"),
    ),
    "count-grows": Claim(
        "The number of attractors grows during the training.",
        "fig. 3",
        "it grows",
        "training",
        SignTest("growth of the number of training attractors"),
    ),
    "count-settles": Claim(
        "The number of attractors settles.",
        "fig. 3",
        "it settles",
        "training",
        Share("number grew, and is within a fifth of that of the record before", unit="seed"),
    ),
    "noise-is-slower": Claim(
        "Noise finds attractors later than data does.",
        "fig. 3",
        "noise is slower",
        "training",
        SignTest("mean lead of training over noise attractors"),
    ),
    "rank-grows-with-epochs": Claim(
        "The rank of the decoded attractors grows over the epochs.",
        "fig. 13",
        "it grows with generalization",
        "training",
        SignTest("correlation of rank and epoch"),
    ),
    "steps-correlate": Claim(
        "Measured steps correlate with the estimate by the spectral norm at the attractor.",
        "fig. 11",
        "they correlate",
        "convergence",
        Mean("correlation by the spectral norm", 0.5, 1, by="starts"),
    ),
    "steps-correlate-by-radius": Claim(
        "They correlate with the estimate by the spectral radius.",
        "fig. 11",
        "–",
        "convergence",
        Mean("correlation by the spectral radius", 0.5, 1, by="starts"),
    ),
    "steps-in-proportion": Claim(
        "Measured steps are in proportion to the estimate by the spectral norm (the slope of logarithms is near 1).",
        "prop. A.9",
        "about log(eps / e0) / log(rho) steps, e0 the distance at the start",
        "convergence",
        Mean("slope by the spectral norm", 0.5, 1.5, by="starts"),
    ),
    "steps-in-proportion-by-radius": Claim(
        "The same by the spectral radius.",
        "prop. A.9",
        "–",
        "convergence",
        Mean("slope by the spectral radius", 0.5, 1.5, by="starts"),
    ),
    "contracts-at-initialisation": Claim(
        "The ratio of output to input deviation is below 1 at random weights, under every seed of a backbone.",
        "fig. 6",
        "below 1 for most of 12 backbones",
        "contraction",
        Share(BELOW, by="output", unit="backbone"),
    ),
    "fields-align": Claim(
        "The fields of two seeds align near the images better than that of a seed and an untrained network.",
        "sec. 6",
        "–",
        "alignment",
        SignTest("cosine less that of the null", by="map"),
    ),
    "fields-align-across": Claim(
        "The fields of a convolutional and a fully connected network align better than without training of the second.",
        "sec. 6",
        "–",
        "alignment-across",
        SignTest("cosine less that of the null", by="map"),
    ),
    "basins-agree": Claim(
        "Basins of two seeds agree better than by chance.",
        "sec. 6",
        "–",
        "alignment",
        SignTest("adjusted Rand", by="map"),
    ),
    "basins-agree-across": Claim(
        "Basins of a convolutional and a fully connected network agree better than by chance.",
        "sec. 6",
        "–",
        "alignment-across",
        SignTest("adjusted Rand", by="map"),
    ),
    "residuals-demo": Claim(
        "Residuals fall at bounded norms: the demo model, a small ViT-MAE.",
        "fig. 12",
        "–",
        "residuals-demo",
        Share(FALLS, by="curve", more_than=0.9),
    ),
    "residuals-local": Claim(
        "Residuals fall at bounded norms: dinov2-small with a surrogate, taef2, and the demo model.",
        "fig. 16",
        "–",
        "residuals-local",
        Share(FALLS, by="curve", more_than=0.9),
    ),
    "residuals-full": Claim(
        "Residuals fall at bounded norms: ViT-MAE, DINOv2, SigLIP2, Qwen3-0.6B and SmolLM2.",
        "fig. 12, 16, 17",
        "yes",
        "residuals-full",
        Share(FALLS, by="curve", more_than=0.9),
    ),
    "exponent-rises-with-k": Claim(
        "Orbits under surrogates of small capacity contract, and part with capacity: dinov2-small and"
        " efficientnet-lite1.",
        "fig. 2",
        "–",
        "capacity",
        RankCorrelation("k", "exponent", 1, by="encoder"),
    ),
    "chaos-is-the-encoders": Claim(
        "With all features orbits are chaotic under surrogates of two disjoint sets of images, and not so under random"
        " weights.",
        "fig. 2",
        "–",
        "capacity",
        Share(CHAOTIC, by="encoder", unit="seed"),
    ),
    "attractors-are-the-encoders": Claim(
        "Attractors that the surrogate of one set of images has, that of another has as well.",
        "fig. 2",
        "–",
        "capacity",
        Share("every attractor of A has its partner in B", by="encoder"),
    ),
    "attractors-beat-the-basis-local": Claim(
        "Attractors reconstruct images better than a random orthogonal basis: the demo model, taef2, dinov2-small with"
        " a surrogate, and two small ViT-MAEs.",
        "fig. 4, 7-9",
        "–",
        "weights-local",
        Share(IMAGES_BELOW, by="model", unit="set"),
    ),
    "attractors-beat-the-basis-in-latents": Claim(
        "They reconstruct latents better than it does.",
        "fig. 4, 7-9",
        "–",
        "weights-local",
        Share("latent MSE below that of the basis at every number of atoms", by="model", unit="set"),
    ),
    "attractors-beat-random-weights": Claim(
        "They reconstruct images better than attractors of random weights do.",
        "fig. 4, 7-9",
        "–",
        "weights-local",
        Share("image MSE below that of random weights at every number of atoms", by="model", unit="set"),
    ),
    "attractors-beat-the-basis": Claim(
        "Attractors of Stable Diffusion's autoencoder reconstruct images better than a random orthogonal basis.",
        "fig. 4, 7-9, 15",
        "on all six data sets, with 32 to 4096 atoms",
        "weights",
        Share(IMAGES_BELOW, unit="set"),
    ),
    "attractors-beat-the-basis-xl": Claim(
        "The same on the autoencoder of Stable Diffusion XL.",
        "fig. 15",
        "they do",
        "weights-xl",
        Share(IMAGES_BELOW, unit="set"),
    ),
    "trajectory-beats-knn-demo": Claim(
        "The distance to attractors along the trajectory beats KNN over all images: the demo model.",
        "tab. 1",
        "–",
        "ood-demo",
        Share(ABOVE_KNN, by="set"),
    ),
    "trajectory-beats-knn-mae": Claim(
        "The distance to attractors along the trajectory beats KNN over all images: a small ViT-MAE on CIFAR-10.",
        "tab. 1",
        "–",
        "ood-mae",
        Share(ABOVE_KNN, unit="set"),
    ),
    "features-near-the-best-mae": Claim(
        "The rule that decides by default comes within 2 points of the best single score of each set:"
        " a small ViT-MAE on CIFAR-10.",
        "tab. 1",
        "–",
        "ood-mae",
        Share(NEAR_BEST, unit="set"),
    ),
    "trajectory-beats-knn-dinov2": Claim(
        "The distance to attractors along the trajectory beats KNN over all images:"
        " dinov2-small with a surrogate, on photos.",
        "tab. 1",
        "–",
        "ood-dinov2",
        Share(ABOVE_KNN, unit="set"),
    ),
    "features-near-the-best-dinov2": Claim(
        "The rule that decides by default comes within 2 points of the best single score of each set:"
        " dinov2-small with a surrogate, on photos.",
        "tab. 1",
        "–",
        "ood-dinov2",
        Share(NEAR_BEST, unit="set"),
    ),
    "trajectory-beats-knn": Claim(
        "The distance to attractors along the trajectory beats KNN over all images: ViT-MAE base on ImageNet.",
        "fig. 5, 10, tab. 1",
        "AUROC 91.20, 90.99, 92.63, 91.29 against 42.59, 32.36, 89.41, 68.60, and FPR95 29.60, 29.95, 25.85, 29.85"
        " against 100.00, 100.00, 34.50, 86.35 (SUN397, Places365, Texture, iNaturalist)",
        "ood",
        Share(ABOVE_KNN, by="set"),
    ),
    "prototypes": Claim(
        "Decoded attractors of Stable Diffusion show geometric and texture patterns.",
        "fig. 18",
        "they do",
        "prototypes",
        None,
    ),
}
