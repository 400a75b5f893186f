"""The paper's two stopping rules (Fumero et al., ICLR 2026, sec. 4), the defaults of every search by kind of model."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """A stopping rule: when an orbit ends unless the caller says otherwise.

    Attributes:
        name: what results call the rule.
        tol: tolerance at which an orbit has converged.
        max_steps: largest number of steps.
        measure: measure of a step.
    """

    name: str
    tol: float
    max_steps: int
    measure: str = "squared"

    def chosen(self, tol: float | None, measure: str | None, max_steps: int | None) -> dict[str, Any]:
        """`tol`, `measure` and `max_steps` as `iterate` takes them: the given values, and those of this protocol for
        None.
        """
        given = {"tol": tol, "measure": measure, "max_steps": max_steps}
        return {key: getattr(self, key) if value is None else value for key, value in given.items()}

    def named(self, tol: float | None, measure: str, max_steps: int, reason: str = "") -> str:
        """What a result calls its stopping rule: this protocol, this protocol with fewer steps for a `reason`, or "as
        given".
        """
        if (tol, measure) != (self.tol, self.measure) or (max_steps != self.max_steps and not reason):
            return "as given"
        return self.name if max_steps == self.max_steps else f"{self.name}; max_steps lowered to {max_steps} {reason}"


SMALL = Protocol("paper, small autoencoders", tol=1e-6, max_steps=3000)
FOUNDATION = Protocol("paper, foundation models", tol=1e-5, max_steps=500)
FOR_DEVICE = "for this device"  # the reason why a plan takes fewer steps than its protocol


def protocol_for(*models: Any) -> Protocol:
    """The protocol of a model: that of small autoencoders for a bare f, and the loosest one for several models.

    A model that `fmprobe.load` returned is a foundation model, and its attribute `protocol` says so.
    """
    return max((getattr(model, "protocol", SMALL) for model in models), key=lambda protocol: protocol.tol)
