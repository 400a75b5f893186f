"""Run the published protocols on a graphics card, in parts of at most eight minutes that go on where they stopped.

    python recipes/gpu_suite.py                          # list the parts
    python recipes/gpu_suite.py --part 3 --data DATA     # one part; the same command goes on with it
    python recipes/gpu_suite.py --part 3 --small         # its smallest form, on a CPU

DATA is a folder with mnist.npz, fashion_mnist.npz and cifar10/, which together take less than 64 MiB. Every part is one
command of another recipe under its published protocol, with the 12,000 images that DATA holds. It is stopped after
--minutes and keeps every condition that is done. The parts of `training_dynamics` and `convergence` are one training
each, and start anew.
"""

import argparse
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fmprobe.sharing import alone

RECIPES = Path(__file__).parent
KEPT = (130, 143)  # exit codes of a recipe that was stopped


@dataclass(frozen=True)
class Part:
    """A command of a recipe.

    Attributes:
        recipe: name of the recipe.
        full: its arguments under the published protocol; DATA stands for the folder of images.
        small: its arguments in the smallest form.
    """

    recipe: str
    full: str
    small: str


CARD = "--data DATA --device cuda"
EPOCHS = "--steps 47000"  # 500 epochs of 12,000 images in batches of 128
SETS = ("mnist", "fashion_mnist", "cifar10")
PARTS = (
    *(
        Part("memorization", f"--full {CARD} --sets {name} {EPOCHS}", "--ks 2 --images 16 --steps 2 --starts 4")
        for name in SETS
    ),
    Part("training_dynamics", f"--full {CARD} {EPOCHS}", "--k 2 --images 16 --steps 2 --starts 4 --width 2"),
    Part("vector_field", f"--full {CARD}", "--seeds 0 --images 32 --steps 2 --frames 2 --resolution 3"),
    Part("convergence", f"--full {CARD}", "--images 16 --steps 2 --starts 4"),
    Part("alignment", f"--full {CARD}", "--ks 2 --images 32 --test 24 --width 2 --steps 2 --max-steps 5"),
    Part("noise_meets_training", f"--full {CARD}", "--changes width --starts 4 --images 16 --steps 1"),
    Part("contraction", "--full --device cuda", "--backbones resnet18 --inputs 4 --side 32 --seeds 1"),
    Part("contraction", "--probe --device cuda", "--probe"),
)


def command_of(part: Part, number: int, data: Path | None, out: Path, small: bool) -> list[str]:
    """The command of a part, with a folder of its own for the results."""
    given = part.small if small else part.full.replace("DATA", str(data))
    return [sys.executable, str(RECIPES / f"{part.recipe}.py"), *given.split(), "--out", str(out / f"part-{number}")]


def run(command: list[str], seconds: float) -> bool:
    """Run a command for so many seconds at most; returns whether it came to its end."""
    child = subprocess.Popen(command)
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)
        code = child.wait()
        if code in (*KEPT, -signal.SIGTERM):
            return False
    if code:
        sys.exit(code)
    return True


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=range(1, len(PARTS) + 1), help="Number of the part to run.")
    parser.add_argument("--data", type=Path, help="Folder of images.")
    parser.add_argument("--small", action="store_true", help="Run the smallest form of the part, on any device.")
    parser.add_argument("--minutes", type=float, default=8.0, help="Minutes after which it stops. [default: 8]")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_suite"), help="Folder for the results.")
    arguments = parser.parse_args()
    if arguments.part is None:
        for number, part in enumerate(PARTS, 1):
            print(f"{number:2d}  {part.recipe} {part.full}")
        return
    part = PARTS[arguments.part - 1]
    if "DATA" in part.full and not arguments.small and arguments.data is None:
        parser.error(f"part {arguments.part} needs --data, a folder with mnist.npz, fashion_mnist.npz and cifar10/")
    command = command_of(part, arguments.part, arguments.data, arguments.out, arguments.small)
    done = run(command, 60 * arguments.minutes)
    print(f"part {arguments.part}: {'done' if done else 'stopped; the same command goes on with it'}")


if __name__ == "__main__":
    main()
