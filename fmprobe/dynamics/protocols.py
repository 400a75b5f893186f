"""The paper's two stopping rules (Fumero et al., ICLR 2026, sec. 4): the defaults of every search, by kind of model."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """When an orbit ends unless the caller says otherwise: `tol` in `measure`, after at most `max_steps` steps."""

    name: str
    tol: float
    max_steps: int
    measure: str = "squared"

    def chosen(self, tol: float | None, measure: str | None, max_steps: int | None) -> dict[str, Any]:
        """`tol`, `measure` and `max_steps` as `iterate` takes them: those given, and this protocol's for None."""
        given = {"tol": tol, "measure": measure, "max_steps": max_steps}
        return {key: getattr(self, key) if value is None else value for key, value in given.items()}

    def named(self, tol: float | None, measure: str, max_steps: int, reason: str = "") -> str:
        """What a result calls its stopping rule: this protocol, with other steps for a `reason`, or "as given"."""
        if (tol, measure) != (self.tol, self.measure) or (max_steps != self.max_steps and not reason):
            return "as given"
        return self.name if max_steps == self.max_steps else f"{self.name}; max_steps lowered to {max_steps} {reason}"


SMALL = Protocol("paper, small autoencoders", tol=1e-6, max_steps=3000)
FOUNDATION = Protocol("paper, foundation models", tol=1e-5, max_steps=500)
FOR_DEVICE = "for this device"  # why a plan takes fewer steps than its protocol


def protocol_for(*models: Any) -> Protocol:
    """The protocol of a model, that of small autoencoders for a bare f; of several models the loosest among theirs.

    A model that `fmprobe.load` gave is a foundation model, and says so in its attribute `protocol`.
    """
    return max((getattr(model, "protocol", SMALL) for model in models), key=lambda protocol: protocol.tol)
