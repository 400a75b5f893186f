"""Checks for reading weights: every weight is the checkpoint's own, and none is left over."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch

from fmprobe.errors import InputError
from fmprobe.loading import Source

LIBRARIES = ("transformers", "diffusers", "timm")
# Weights in files that models compute by themselves, or that only masking would use.
UNUSED = ("position_ids", "inv_freq", "relative_position_index", "mask_token")
NAMED = 3  # largest number of weights that a message names


def check_keys(
    name: str,
    model: str,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    mismatched: Iterable[tuple[str, Any, Any]] = (),
) -> None:
    """Check that a checkpoint belongs to the model that its config.json describes.

    Args:
        name: what the checkpoint is called in the message.
        model: class of the model.
        missing: weights that the checkpoint lacks.
        unexpected: weights that belong to parts of the model but have no place in it.
        mismatched: weights of another shape, as (name, shape in the checkpoint, shape in the model).

    Raises:
        InputError: any of the three is not empty; the message names weights.
    """
    for key, held, wanted in sorted(mismatched):
        raise InputError(
            f"{name} holds {key} of shape {tuple(held)}, where {model} by its config.json needs {tuple(wanted)}: "
            "weights and config.json do not belong together, fetch the model again"
        )
    if missing:
        others = f"; it holds {_named(unexpected)} instead" if unexpected else ""
        raise InputError(
            f"{name} lacks {len(missing)} weights that {model} needs, such as {_named(missing)}{others}: they would be "
            "random, choose another checkpoint"
        )
    if unexpected:
        raise InputError(
            f"{name} holds {len(unexpected)} weights that {model} by its config.json has no place for, such as "
            f"{_named(unexpected)}: its config.json describes another model, fetch it again"
        )


def check_filled(name: str, module: torch.nn.Module) -> None:
    """Check that every parameter and buffer has storage.

    Raises:
        InputError: one has a shape only.
    """
    values = [*module.named_parameters(), *module.named_buffers()]
    check_keys(name, type(module).__name__, [key for key, value in values if value.is_meta])


def left_over(expected: Iterable[str], unexpected: Iterable[str]) -> list[str]:
    """Those unexpected weights that belong to a part of which other weights are expected, and not to another part."""
    parts = {key.split(".")[0] for key in expected}
    return [key for key in unexpected if key.split(".")[0] in parts and not key.endswith(UNUSED)]


def _named(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:NAMED])


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn any error that a model library raises while loading into one line that names the model."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot load the weights of {name}: {reason}") from error


def first_output(
    source: Source, module: Any, function: Callable[[torch.Tensor], Any], image_shape: tuple[int, ...], what: str
) -> Any:
    """What a function of a model gives for a grey image; an error becomes one line that begins with `what`."""
    try:
        with torch.no_grad():
            return function(torch.full((1, *image_shape), 0.5, device=source.device))
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point()})
        if len(kinds) > 1:
            raise InputError(
                f"{source.name} has parameters of {' and '.join(kinds)}, which its forward does not combine: cast it "
                f"to one type, as with module.float() ({reason})"
            ) from error
        raise InputError(f"{source.name} {what}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the reports and progress bars of the model libraries; what matters of them is an error here."""
    from transformers.utils import logging as reports

    loggers = [logging.getLogger(library) for library in LIBRARIES]
    levels, bars = [logger.level for logger in loggers], reports.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    reports.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            reports.enable_progress_bar()
