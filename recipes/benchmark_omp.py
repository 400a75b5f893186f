"""Compare Orthogonal Matching Pursuit of many targets with scikit-learn's and with the plain batched algorithm.

    python recipes/benchmark_omp.py                     # 4096 atoms of dimension 4096, 256 selected, 64 targets
    python recipes/benchmark_omp.py --plain             # fmprobe and the plain algorithm alone, on sizes of probes
    python recipes/benchmark_omp.py --scaling omp.png   # the first, and time against targets and atoms, plotted

All sides run on the same cores, in rounds that alternate between them, and include the products of all atoms.
Medians over the rounds are printed, with the range. scikit-learn's `orthogonal_mp_gram` takes one target after another,
so it is timed on the first few. The order of the matrix it is given decides its speed, so it is timed in several ways:
as `numpy.dot` makes the matrix, with and without `copy_Gram`, and in Fortran order, which suits it best (there
`copy_Gram=False` would spoil the matrix for the next target).
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

import fmprobe
from fmprobe.dynamics.matching_pursuit import BUDGET, DEPENDENT, UnitAtoms
from fmprobe.dynamics.sparse_codes import Codes
from fmprobe.seeding import torch_generator
from fmprobe.sharing import alone

SKLEARN: dict[str, tuple[str, Literal["C", "F"], bool]] = {
    "scikit-learn, float32, copy_Gram=False": ("float32", "C", False),
    "scikit-learn, float32, Fortran order": ("float32", "F", True),
    "scikit-learn, float64, copy_Gram=False": ("float64", "C", False),
    "scikit-learn, float64, as it comes": ("float64", "C", True),
    "scikit-learn, float64, Fortran order": ("float64", "F", True),
}
Clock = Callable[[], float]
FMPROBE, PLAIN = "fmprobe, float32", "plain batched algorithm, float32"
STORE = 1 << 24  # bytes of rows that the plain algorithm keeps for a block of targets: more or fewer made it slower
# Numbers of atoms, their dimension, numbers of targets and of atoms selected.
PROBES = (
    (64, 256, 64, 16),
    (500, 1024, 64, 32),
    (512, 4096, 256, 256),
    (1024, 1024, 256, 128),
    (2048, 4096, 256, 128),
    (4096, 4096, 64, 32),
    (4096, 4096, 64, 256),
    (4096, 16384, 64, 256),
    (4096, 4096, 16, 512),
    (4096, 4096, 16, 1024),
)


def problem(atoms: int, dim: int, targets: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit atoms, as scikit-learn expects, in directions drawn from N(0, I), and N(0, I) targets."""
    g = torch_generator(seed, "benchmark_omp recipe: atoms and targets")
    dictionary = torch.nn.functional.normalize(torch.randn(atoms, dim, generator=g), dim=1)
    return dictionary, torch.randn(targets, dim, generator=g)


def by_fmprobe(
    dictionary: Tensor, targets: Tensor, select: int, clock: Clock = time.perf_counter
) -> tuple[Tensor, float]:
    """Chosen atoms and seconds for all targets."""
    began = clock()
    codes = fmprobe.orthogonal_matching_pursuit(dictionary, targets, select)
    assert bool(codes.coefficients.isfinite().all())
    return codes.indices, clock() - began


def by_plain(
    dictionary: Tensor, targets: Tensor, select: int, clock: Clock = time.perf_counter
) -> tuple[Tensor, float]:
    """The same by the Cholesky algorithm as it is published (Rubinstein et al. 2008), all targets of a block together.

    `rows[b, j]` holds the part of every atom along the direction that the j-th chosen atom added. Each step reads all
    earlier rows to make one new row.
    """
    began = clock()
    atoms, norms = UnitAtoms(dictionary, with_gram=True), targets.norm(dim=1)
    chosen = torch.empty(len(targets), select, dtype=torch.long)
    factors = dictionary.new_zeros(len(targets), select, select)
    dependent = DEPENDENT * torch.finfo(dictionary.dtype).eps
    size = min(max(4, min(64, STORE // (dictionary.element_size() * select * len(dictionary)))), len(targets))
    store = dictionary.new_empty(size, select, len(dictionary))
    for first in range(0, len(targets), size):
        block = slice(first, first + size)
        correlations = atoms.products(targets[block] / norms[block, None])
        rows, row = store[: len(correlations)], torch.empty_like(correlations)[:, None]
        share, usable = torch.zeros_like(correlations), torch.ones_like(correlations, dtype=torch.bool)
        for k in range(select):
            best = torch.where(usable, correlations.abs(), 0).argmax(1, keepdim=True)
            scale = (1 - share.gather(1, best)).sqrt()
            along = rows[:, :k].take_along_dim(best[:, None], 2).mT
            atoms.rows(best, row)
            row.baddbmm_(along, rows[:, :k], alpha=-1)
            rows[:, k] = row[:, 0].div_(scale)
            correlations.addcmul_(row[:, 0], correlations.gather(1, best) / scale, value=-1)
            share.addcmul_(row[:, 0], row[:, 0])
            usable = (usable & (1 - share > dependent)).scatter(1, best, False)
            chosen[block, k], factors[block, k, :k], factors[block, k, k] = best[:, 0], along[:, 0], scale[:, 0]
    codes = Codes(chosen, torch.full_like(chosen[:, 0], select), factors, dictionary, targets, atoms.norms, norms)
    assert bool(codes.coefficients.isfinite().all())
    return chosen, clock() - began


def by_sklearn(
    dictionary: Tensor, targets: Tensor, select: int, first: int, dtype: str, order: Literal["C", "F"], copy: bool
) -> tuple[list[set], float]:
    """Sets of chosen atoms of the first targets, and the seconds that all targets would take."""
    atoms, points = dictionary.numpy().astype(dtype), targets.numpy().astype(dtype)
    began = time.perf_counter()
    gram = np.dot(atoms, atoms.T)
    gram = gram.T if order == "F" else gram  # symmetric, so only its memory order changes
    products = time.perf_counter() - began
    began = time.perf_counter()
    right = np.asfortranarray(np.dot(atoms, points[:first].T))
    codes = np.asarray(orthogonal_mp_gram(gram, right, n_nonzero_coefs=select, copy_Gram=copy, copy_Xy=False))
    each = (time.perf_counter() - began) / first
    sets = [set(np.flatnonzero(row).tolist()) for row in codes.reshape(len(atoms), -1).T]
    return sets, products + each * len(targets)


def compare(arguments: argparse.Namespace) -> None:
    """fmprobe, the plain algorithm and scikit-learn on one problem."""
    dictionary, targets = problem(arguments.atoms, arguments.dim, arguments.targets)
    few, select = min(arguments.sklearn_targets, len(targets)), arguments.select
    by_fmprobe(dictionary, targets[:4], min(8, select))  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in (FMPROBE, PLAIN, *SKLEARN)}
    equal = 0
    for _ in range(arguments.rounds):
        chosen, ours = by_fmprobe(dictionary, targets, select)
        seconds[FMPROBE].append(1000 * ours / len(targets))
        seconds[PLAIN].append(1000 * by_plain(dictionary, targets, select)[1] / len(targets))
        for name, way in SKLEARN.items():
            sets, theirs = by_sklearn(dictionary, targets, select, few, *way)
            seconds[name].append(1000 * theirs / len(targets))
            equal = sum(set(row) == other for row, other in zip(chosen[:few].tolist(), sets, strict=True))
    print(
        f"{len(dictionary)} atoms of dimension {dictionary.shape[1]}, {select} selected, {len(targets)} targets, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, {arguments.rounds} rounds; ms a target, all atoms' products included")
    base = median(seconds[FMPROBE])
    for name, values in seconds.items():
        ratio = "" if name == FMPROBE else f", {median(values) / base:.1f} times fmprobe's"
        print(f"  {name:46}{median(values):8.1f}  ({min(values):.1f} to {max(values):.1f}){ratio}")
    print(f"  the same atoms as scikit-learn (float64) for {equal} of {few} targets", flush=True)


def compare_with_plain(rounds: int) -> None:
    """fmprobe and the plain algorithm on sizes that probes use, in processor time, which other load disturbs less."""
    print(f"{torch.get_num_threads()} threads, {rounds} rounds; ms of processor time a target, median (least)")
    for atoms, dim, count, select in PROBES:
        dictionary, targets = problem(atoms, dim, count)
        ours, plain, equal = [], [], 0.0
        for _ in range(rounds):
            chosen, seconds = by_fmprobe(dictionary, targets, select, time.process_time)
            ours.append(1000 * seconds / count)
            others, seconds = by_plain(dictionary, targets, select, time.process_time)
            plain.append(1000 * seconds / count)
            equal = float((chosen == others).all(1).double().mean())
        print(f"  {atoms} atoms of dimension {dim}, {select} selected, {count} targets: ", end="")
        print(f"fmprobe {median(ours):.2f} ({min(ours):.2f}), plain {median(plain):.2f} ({min(plain):.2f}), ", end="")
        ratios = median(plain) / median(ours), min(plain) / min(ours)
        print(f"{ratios[0]:.2f} ({ratios[1]:.2f}) times; the same paths for {equal:.1%} of targets", flush=True)


def memory(peak: bool) -> int:
    """Bytes of memory that the process holds, or their peak since the last call without `peak`. Linux only."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    name = "VmHWM" if peak else "VmRSS"
    return 1024 * next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )


def large(arguments: argparse.Namespace) -> None:
    """Select many atoms and print whether all is finite and how memory grew. Runs in a process of its own."""
    dictionary, targets = problem(arguments.atoms, arguments.dim, arguments.targets)
    fmprobe.orthogonal_matching_pursuit(dictionary[:64, :64], targets[:4, :64], 4).reconstruct(4)
    before = memory(peak=False)
    began = time.perf_counter()
    codes = fmprobe.orthogonal_matching_pursuit(dictionary, targets, arguments.large)
    seconds = time.perf_counter() - began
    grew = memory(peak=True) - before
    result = codes.factors.nbytes + codes.indices.nbytes
    fit = codes.reconstruct(arguments.large)
    share = float(((targets - fit).norm(dim=1) / targets.norm(dim=1)).mean())
    repeated = any(len(set(row)) < len(row) for row in codes.indices.tolist())
    print(f"{arguments.large} selected: {1000 * seconds / len(targets):.0f} ms a target; memory grew by", end=" ")
    print(f"{grew / 2**20:.0f} MiB ({result / 2**20:.0f} of them the result), budget {BUDGET / 2**20:.0f};", end=" ")
    print(
        f"finite: {bool(fit.isfinite().all())}; an atom twice: {repeated}; {int(codes.n_selected.min())} atoms", end=" "
    )
    print(f"a target at least; residual {share:.3f} of the norm", flush=True)


def scaling(arguments: argparse.Namespace, path: Path) -> None:
    """Plot milliseconds per target against the number of targets, of selected atoms and of all atoms."""
    from matplotlib.figure import Figure

    atoms, dim, targets, select = arguments.atoms, arguments.dim, arguments.targets, arguments.select
    axes_of: dict[str, tuple[list[int], Callable[[int], tuple[int, int, int]]]] = {
        "targets": ([1, 4, 16, 64, 256], lambda value: (atoms, value, select)),
        "atoms selected": ([32, 64, 128, 256, 512], lambda value: (atoms, targets, value)),
        "atoms": ([512, 1024, 2048, 4096, 8192], lambda value: (value, targets, select)),
    }
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for ax, (label, (values, setting)) in zip(figure.subplots(1, 3, sharey=True), axes_of.items(), strict=True):
        curves: dict[str, list[float]] = {"fmprobe": [], "scikit-learn, float32, at its best": []}
        for value in values:
            n, count, k = setting(value)
            dictionary, points = problem(n, dim, count)
            curves["fmprobe"].append(1000 * by_fmprobe(dictionary, points, k)[1] / count)
            theirs = by_sklearn(dictionary, points, k, min(2, count), "float32", "F", True)[1]
            curves["scikit-learn, float32, at its best"].append(1000 * theirs / count)
            print(
                f"  {label} {value}: " + ", ".join(f"{name} {c[-1]:.1f} ms" for name, c in curves.items()), flush=True
            )
        for name, curve in curves.items():
            ax.plot(values, curve, "o-", label=name)
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.set_xticks(values, [str(value) for value in values])
        ax.set_xticks([], minor=True)
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms a target")
    figure.savefig(path, dpi=120)
    print(f"plotted: {path}")


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, default=4096, help="Number of atoms.")
    parser.add_argument("--dim", type=int, default=4096, help="Dimension of the atoms.")
    parser.add_argument("--select", type=int, default=256, help="Number of atoms to select.")
    parser.add_argument("--targets", type=int, default=64, help="Number of targets.")
    parser.add_argument("--large", type=int, default=1024, help="Number of atoms to select in the test of memory.")
    parser.add_argument(
        "--sklearn-targets", type=int, default=4, help="Number of targets that scikit-learn is timed on."
    )
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds.")
    parser.add_argument("--scaling", type=Path, help="PNG to plot the scaling into.")
    parser.add_argument(
        "--plain", action="store_true", help="Compare with the plain algorithm alone, on several sizes."
    )
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_large:
        return large(arguments)
    if arguments.plain:
        return compare_with_plain(arguments.rounds)
    compare(arguments)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only-large"], check=True)
    if arguments.scaling:
        scaling(arguments, arguments.scaling)
    return None


if __name__ == "__main__":
    main()
