"""The terms that results use: for the report, which links them, and for the documentation."""

TERMS = {
    "latent map": "The map f(z) = E(D(z)) on a model's latent space: decode a latent, then encode the image again.",
    "start": "A latent that iterating f begins with. Noise starts are drawn from N(0, I), without any data.",
    "orbit": "The sequence z, f(z), f(f(z)), … of a start, also called its trajectory.",
    "step": "One application of f. Its size is the distance ||f(z) - z||.",
    "residual": "The size of a step of an orbit. It falls towards zero where an orbit approaches a fixed point.",
    "tolerance": "The step size below which an orbit has converged.",
    "settled": "Said of an orbit that converged: its step fell below the tolerance.",
    "end": "The last latent of an orbit, whether the orbit settled or not.",
    "fixed point": "A latent that f maps to itself.",
    "attractor": "A fixed point that draws in the latents around it. Only ends of settled orbits can be attractors.",
    "basin of attraction": "The starts whose orbits end in an attractor.",
    "merge threshold": "The distance below which two ends count as one attractor.",
    "unresolved": "Said of a start whose orbit met the tolerance, but whose end may still lie far from its fixed "
    "point. It belongs to no attractor.",
    "spectral radius": "The largest absolute eigenvalue of the Jacobian of f at a fixed point. Below 1 the fixed point "
    "attracts. The nearer to 1, the slower the approach.",
    "Lyapunov exponent": "The mean logarithm, a step, of the factor by which neighbouring orbits part. It is negative "
    "where they meet, 0 on a torus, and positive in chaos.",
    "reading": "What the orbit of a start does in the long run, with its Lyapunov exponent: it settled, runs on a "
    "cycle, is quasi-periodic or chaotic, is still settling, or diverged.",
    "chaotic": "Said of an orbit whose neighbours part exponentially: its largest Lyapunov exponent exceeds 0 by more "
    "than the error.",
    "quasi-periodic": "Said of an orbit whose neighbours neither part nor meet: its largest Lyapunov exponent is 0, "
    "within the error. An orbit on a torus is quasi-periodic.",
    "effective dimension": "Over how many directions points are spread: the participation ratio of the eigenvalues of "
    "their covariance, the square of their sum over the sum of their squares.",
    "stability unknown": "The spectral radius of an attractor was examined, but could not be made certain.",
    "unstable": "Said of a fixed point whose spectral radius exceeds 1. Orbits may reach it, but it attracts none.",
    "polish": "To take an attractor as near to its fixed point as the rounding of f allows.",
    "surrogate decoder": "A decoder that was fitted to an encoder which has none. What is found with it is a finding "
    "on encoder and surrogate together.",
    "held-out": "Said of images that a model, decoder or detector was not fitted on.",
    "capacity": "How many numbers a latent of a closed-form decoder keeps: the first k principal components.",
    "null": "The same measurement where there should be no effect, such as on a model with random weights.",
    "ceiling": "The same measurement where the effect should be as large as it can be, such as on a model and itself "
    "under slight weight noise.",
    "dictionary": "A set of latents, its atoms, whose weighted sums reconstruct other latents.",
    "atom": "One latent of a dictionary.",
    "effective rank": "How many directions the atoms of a dictionary span, weighted by their strength.",
    "in-distribution": "Said of images like those that a detector was fitted on.",
    "out-of-distribution": "Said of images that are not like those that a detector was fitted on.",
    "profile": "All that a detector measures along the trajectory of one image, as one vector.",
    "features": "Said of a score that combines baselines which follow no orbit.",
    "joined": "Said of a score that combines the published score with the baselines.",
    "near-OOD": "Said of a set whose mean features lie close to those of in-distribution images; far-OOD is the rest.",
    "two-sided": "Said of a score that is high where a quantity is unusually high or unusually low.",
    "control": "A set of images that any detector should tell from in-distribution ones, such as constant images.",
    "AUROC": "Area under the ROC curve: the chance that an out-of-distribution image scores higher than an "
    "in-distribution one. 50% is chance.",
    "FPR95": "Share of out-of-distribution images that are accepted where 95% of in-distribution images are.",
    "memorization coefficient": "Mean cosine of the decoded attractors to their nearest training images.",
    "vector field": "The arrows V(z) = f(z) - z: where a step from z leads.",
    "contraction": "That f brings points closer together. Below a factor of 1 it contracts.",
}


def anchor(term: str) -> str:
    """The address of a term on a page."""
    return "term-" + term.lower().replace(" ", "-")
