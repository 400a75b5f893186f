"""The sections of a report, in order: each shown for the runs whose results hold its key.

A new probe adds one line here: its key, a title, how to read it, and a function of its entry and the run; for a probe
that is shown by plots alone, `drawn` makes that function of its figures.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmprobe.report import attractors, ood, surrogate, weights
from fmprobe.report.alignment import alignment
from fmprobe.report.contraction import plot_contraction
from fmprobe.report.convergence import convergence_scatter
from fmprobe.report.fields import plot_field
from fmprobe.report.memorization import memorization
from fmprobe.report.rendering import plot
from fmprobe.report.residuals import plot_residuals
from fmprobe.report.training import training_curves

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fmprobe.report.run import Run

Body = Callable[[Mapping[str, Any], "Run"], "Markup"]


@dataclass(frozen=True)
class Section:
    """`key` of results.json, what stands above, and `body`, which makes markup of the entry."""

    key: str
    title: str
    lead: str
    body: Body

    @property
    def anchor(self) -> str:
        """Its address on the page."""
        return re.sub(r"\W+", "-", self.title.lower())


def drawn(**figures: "Callable[[Mapping[str, Any]], Figure]") -> Body:
    """A body of plots alone: functions of the entry by what each shows, underscores for spaces."""

    def body(entry: Mapping[str, Any], run: "Run") -> "Markup":
        from markupsafe import Markup

        plots = [plot(figure(entry), name.replace("_", " "), run) for name, figure in figures.items()]
        return Markup('<div class="plots">{}</div>').format(Markup("").join(plots))

    return body


SECTIONS = (
    Section(
        "attractors",
        "Decoded attractors",
        "Sized by basin: the share of the starts that end there. ρ is the spectral radius of the Jacobian at the "
        "attractor: the nearer to 1, the slower the approach.",
        attractors.gallery,
    ),
    Section(
        "trajectories",
        "On the way",
        "A few starts, decoded step by step from noise to where they end. The last frame is the end of each orbit, "
        "settled or not.",
        attractors.film,
    ),
    Section(
        "orbits",
        "How the orbits ended",
        "Each start is judged by its own orbit. Only those that converged can belong to an attractor.",
        attractors.statuses,
    ),
    Section(
        "residuals",
        "Residual curves",
        "One line a start: how far a step moves the latent, up to the step at which it ended.",
        attractors.residuals,
    ),
    Section(
        "attractors",
        "Attractors against the merge threshold",
        "How many ends count as distinct if nearer ones are merged. A plateau around the dashed line is a count to "
        "trust.",
        attractors.sweep,
    ),
    Section(
        "weights",
        "Weight probing",
        "Images the search never saw are encoded, and their latents reconstructed by Orthogonal Matching Pursuit from "
        "the first 1, 2, … atoms of a dictionary. If the model's atoms do better than as many atoms of chance, the "
        "weights hold something about such images. Bands are 95% bootstrap intervals over images; the lowest error of "
        "a column is bold. PCA sees images of the same data set: a reference, not a rival.",
        weights.weights,
    ),
    Section(
        "memorization",
        "Memorization",
        "How near the decoded attractors are to training images, beside what is as near without memory: test images, "
        "decoded starts, noise, the mean image.",
        memorization,
    ),
    Section(
        "field",
        "The latent vector field",
        "V(z) = f(z) - z on a plane: arrows coloured by its norm, basins shaded, attractors as stars. What is not "
        "shaded ends in no attractor.",
        drawn(vector_field=plot_field),
    ),
    Section(
        "training",
        "Attractors along the training",
        "Per epoch: distinct attractors from training, test and noise starts, how far the sets meet, memorization and "
        "errors.",
        drawn(attractors_along_the_training=lambda entry: training_curves(entry["records"])),
    ),
    Section(
        "convergence",
        "Speed of convergence",
        "Measured steps against the estimate log(eps/||e0||)/log(rho) (prop. A.9).",
        drawn(measured_against_estimated_steps=convergence_scatter),
    ),
    Section(
        "contraction",
        "Contraction",
        "By which factor f stretches at the points of trajectories. Below 1 it contracts.",
        drawn(spectral_norm_and_radius_along_trajectories=plot_contraction),
    ),
    Section(
        "residual_curves",
        "Residuals in latent space and in images",
        "Median over the starts, with the bands that hold half and four fifths of them.",
        drawn(residuals_against_the_step=plot_residuals),
    ),
    Section(
        "alignment",
        "Two networks compared",
        "Cosine of the two fields under each map between the latent spaces, and agreement of relative representations "
        "along the iteration, beside a null of random weights and a ceiling.",
        alignment,
    ),
    Section(
        "ood",
        "Images from elsewhere",
        "Which scores tell images from elsewhere from in-distribution ones. No set from elsewhere decided anything.",
        ood.ood,
    ),
    Section("ood_scores", "Scored images", "What a detector that was kept says of new images.", ood.scored),
    Section(
        "decoder",
        "The surrogate",
        "The encoder has no decoder of its own. The latent map is that of encoder and surrogate together, and its "
        "findings are not the encoder's.",
        surrogate.quality,
    ),
)
