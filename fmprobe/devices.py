"""The device that is computed on: the accelerator that is here, else the CPU."""

from typing import TYPE_CHECKING

from fmprobe.errors import InputError
from fmprobe.sharing import take_device

if TYPE_CHECKING:
    import torch


def pick_device(device: "str | torch.device | None" = None) -> "torch.device":
    """The device asked for; for None or "auto" the accelerator that is there, else the CPU.

    Raises:
        InputError: the device is unknown or not there.
    """
    import torch

    take_device()
    if device is not None and device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise InputError(f"unknown device {device!r}: expected auto, cpu, cuda, cuda:N or mps") from error
        there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "meta": 0}
        if (chosen.index or 0) >= there.get(chosen.type, 1):
            raise InputError(f"device {device} is not here: auto takes the accelerator that is here, else the CPU")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
