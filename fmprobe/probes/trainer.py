"""A tracker of attractors inside the Trainer of transformers, and its records as the numbers that trackers take."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

PREFIX = "attractors"  # of the names in trackers


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by name, such as `attractors/noise/count`; what is not known is left out."""
    found: dict[str, float] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{name}/{key}", inner)
        elif isinstance(value, int | float):
            found[name] = value

    for key, value in record.items():
        if key != "epoch":
            add(f"{PREFIX}/{key}", value)
    return found


def trainer_callback(tracker: Callable[[int, Any], Mapping[str, Any] | None]) -> Any:
    """A `transformers.TrainerCallback` that measures before the training and after each epoch."""
    from transformers import TrainerCallback

    class TrackerCallback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:  # a training that goes on was measured before
                self._measure(0, args, state, control, kwargs["model"])

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step < state.max_steps or state.epoch == round(state.epoch):  # else it ends within an epoch
                self._measure(round(state.epoch), args, state, control, kwargs["model"])

        def _measure(self, epoch: int, args: Any, state: Any, control: Any, model: Any) -> None:
            record = tracker(epoch, model)
            if record is None:
                return
            logs = {**numbers(record), "epoch": float(epoch)}
            state.log_history.append({**logs, "step": state.global_step})
            should_log = control.should_log
            if (handler := _handler(self)) is not None:
                handler.on_log(args, state, control, logs)
            control.should_log = should_log  # which the handler clears, and the Trainer's own loss is still to come

    return TrackerCallback()


def _handler(callback: Any) -> Any:
    """The handler of all the Trainer's callbacks. It calls them without saying who it is, so it is looked for there."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if any(one is callback for one in getattr(caller, "callbacks", ())) and hasattr(caller, "on_log"):
            return caller
        frame = frame.f_back
    return None
