"""How far a long computation is: a bar on a terminal, and elsewhere now and then a line on standard error."""

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self

DELAY = 2.0  # seconds before a bar appears
EVERY = 30.0  # seconds between two lines, whatever they tell about
SOON, LONG = 5.0, 60.0  # after so many seconds a first line tells that there is so much left

now = time.monotonic


def duration(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def progress_of(what: str, total: int | None, *, shown: bool | None = None, unit: str = "it", initial: int = 0) -> Any:
    """A context that is told of progress by `update(n)`, as tqdm is.

    Args:
        what: what is running, in a word or two.
        total: number of parts in all; None if that is not known.
        shown: None shows a bar on a terminal and lines elsewhere, True a bar anywhere, False nothing.
        unit: what one part is called on the bar.
        initial: number of parts that are done already.
    """
    if sys.stderr is None or os.environ.get("TQDM_DISABLE", "") not in ("", "0"):  # as --quiet sets it
        shown = False
    elif shown is None and not sys.stderr.isatty():
        return Lines(what, total, initial)
    from tqdm.auto import tqdm

    settings: dict[str, Any] = {"total": total, "initial": initial, "unit": unit, "delay": DELAY}
    return tqdm(desc=what, disable=shown is False, leave=False, **settings)


def followed(items: Iterable[Any], what: str, total: int | None, *, shown: bool | None = None) -> Iterator[Any]:
    """The items, with progress as they are taken."""
    with progress_of(what, total, shown=shown) as progress:
        for item in items:
            yield item
            progress.update(1)


class Lines:
    """Progress as lines on standard error, for logs: what is running, how far it is, and how long it will take.

    Args:
        what: what is running.
        total: number of parts in all, or None.
        initial: number of parts that are done already.
    """

    told = -math.inf  # when the last line of any was written

    def __init__(self, what: str, total: int | None, initial: int = 0) -> None:
        self.what, self.total, self.n, self.initial = what, total, initial, initial
        self.began = self.last = now()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count parts that are done; write a line where one is due."""
        self.n += n
        at, left = now(), self.left()
        first = self.last == self.began and left is not None and left > LONG and at - self.began >= SOON
        if at - Lines.told < EVERY or not (first or at - self.last >= EVERY):
            return
        self.last = Lines.told = at
        far = f"{self.n}" if self.total is None else f"{self.n} of {self.total}"
        rest = "" if left is None else f", about {duration(left)} left"
        print(f"{self.what}: {far} after {duration(at - self.began)}{rest}", file=sys.stderr, flush=True)

    def left(self) -> float | None:
        """Seconds that the rest will take at the pace so far; None where that is not known."""
        done = self.n - self.initial
        if self.total is None or done <= 0:
            return None
        return max(0, self.total - self.n) * (now() - self.began) / done

    def close(self) -> None:
        """As tqdm's."""

    def set_postfix(self, **_: Any) -> None:
        """As tqdm's; lines show no more than how far it is."""
