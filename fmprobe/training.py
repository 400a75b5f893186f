"""The training of small autoencoders: one by itself, or many of one shape at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from fmprobe.autoencoder import check_images
from fmprobe.convolutional import BottleneckAutoencoder
from fmprobe.dynamics.checks import check_counts, check_seed
from fmprobe.errors import InputError
from fmprobe.progress import progress_of
from fmprobe.seeding import generator, seed_torch, torch_generator

Callback = Callable[[int, nn.Module], object]
ALONE = "train it alone, by train_autoencoder"


@dataclass(frozen=True)
class Recipe:
    """The paper's: Adam, with its rate divided by 10 at half and at three quarters of the epochs (Fumero et al., ICLR
    2026, appendix, experimental details).
    """

    epochs: int = 500
    batch_size: int = 128
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        check_counts(0, epochs=self.epochs)
        check_counts(batch_size=self.batch_size)
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise InputError(
                "learning_rate must be positive and finite, weight_decay at least 0: got "
                f"{self.learning_rate}, {self.weight_decay}"
            )


def train_autoencoder(
    model: BottleneckAutoencoder,
    images: Tensor,
    *,
    epochs: int = Recipe.epochs,
    batch_size: int = Recipe.batch_size,
    learning_rate: float = Recipe.learning_rate,
    weight_decay: float = Recipe.weight_decay,
    seed: int = 0,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> list[float]:
    """Train a model on its own loss by the paper's recipe: Adam, with its rate divided by 10 at half and at three
    quarters.

    The order of the images and all noise depend on `seed` alone. The caller's random state is left as it was. The model
    is left in eval mode.

    Args:
        model: the model to train.
        images: images `(n, *image_shape)` in [0, 1], on any device.
        epochs: number of epochs.
        batch_size: number of images in a batch.
        learning_rate: learning rate at the beginning.
        weight_decay: weight decay of Adam.
        seed: seed of the order and of the noise.
        callback: called as `callback(epoch, model)`, before the training with 0 and after each epoch with 1, 2, …; for
            example an `AttractorTracker`.
        progress: whether a bar is shown; None shows one on a terminal, and lines elsewhere.

    Returns:
        The mean loss of each epoch.

    Raises:
        InputError: there are no images, or not such as the model takes, or a rate makes no sense.
        ValueError: a number makes no sense.
    """
    _check(model, images, [seed])
    recipe = Recipe(epochs, batch_size, learning_rate, weight_decay)
    noise = _noise_of(seed)

    def losses_of(batches: Tensor) -> Tensor:
        return model.loss(batches[0], noise)[None]

    callbacks = None if callback is None else [callback]
    return descend([model], list(model.parameters()), losses_of, images, [seed], recipe, callbacks, progress)[0]


def train_autoencoders(
    models: Sequence[BottleneckAutoencoder],
    images: Tensor,
    *,
    epochs: int = Recipe.epochs,
    batch_size: int = Recipe.batch_size,
    learning_rate: float = Recipe.learning_rate,
    weight_decay: float = Recipe.weight_decay,
    seeds: Sequence[int] | None = None,
    callbacks: Sequence[Callback] | None = None,
    progress: bool | None = None,
) -> list[list[float]]:
    """Train models of one shape at once: each as `train_autoencoder` would train it with its seed, within rounding.

    Each step takes a batch of every model, in the model's own order, through the stacked weights. Adam treats every
    weight by itself, and the gradient of the summed losses is that of each loss, so that no model touches another. The
    memory is that of all models and their batches.

    Args:
        models: the models to train, which differ in their weights alone.
        images: as in `train_autoencoder`. All models train on the same.
        epochs: as in `train_autoencoder`.
        batch_size: number of images in a batch of each model.
        learning_rate: as in `train_autoencoder`.
        weight_decay: as in `train_autoencoder`.
        seeds: a seed for each model; by default 0, 1, 2, …
        callbacks: one for each model, called as in `train_autoencoder` with the model as it is then.
        progress: as in `train_autoencoder`.

    Returns:
        For each model the mean loss of each epoch.

    Raises:
        InputError: there is no model, or the models cannot train at once; further as in `train_autoencoder`.
        ValueError: as in `train_autoencoder`.
    """
    models = list(models)
    seeds = list(range(len(models)) if seeds is None else seeds)
    _check_many(models, seeds, callbacks)
    _check(models[0], images, seeds)
    recipe = Recipe(epochs, batch_size, learning_rate, weight_decay)
    noises = [_noise_of(seed) for seed in seeds]
    losses = [_Loss(model) for model in models]
    stacked, _ = stack_module_state(losses)  # type: ignore[arg-type]  # it takes any sequence of modules

    def loss_of(weights: dict[str, Tensor], noise: Tensor, batch: Tensor) -> Tensor:
        return functional_call(losses[0], weights, (noise, batch))

    def losses_of(batches: Tensor) -> Tensor:
        drawn = [model.noise(x, noise) for model, x, noise in zip(models, batches, noises, strict=True)]
        return vmap(loss_of)(stacked, torch.stack(drawn), batches)

    with _views(losses, stacked):
        return descend(models, list(stacked.values()), losses_of, images, seeds, recipe, callbacks, progress)


def descend(
    models: Sequence[nn.Module],
    parameters: Sequence[Tensor],
    losses_of: Callable[[Tensor], Tensor],
    images: Tensor,
    seeds: Sequence[int],
    recipe: Recipe,
    callbacks: Sequence[Callback] | None,
    progress: bool | None,
) -> list[list[float]]:
    """Train models by the gradient of their summed losses, each in its own order of the images.

    Args:
        models: the models, for the callbacks.
        parameters: the parameters of all models.
        losses_of: the losses of the models `(S,)`, of a batch for each `(S, b, *image_shape)`.
        images: images `(n, *image_shape)`.
        seeds: a seed for each model.
        recipe: how the parameters descend.
        callbacks: one for each model, or None.
        progress: as in `train_autoencoder`.

    Returns:
        For each model the mean loss of each epoch.
    """
    epochs, device, data = recipe.epochs, parameters[0].device, images.detach()
    optimiser: Any = torch.optim.Adam(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    milestones = sorted({max(1, epochs // 2), max(1, 3 * epochs // 4)})
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones)
    means: list[list[float]] = [[] for _ in models]

    def call(epoch: int) -> None:
        for callback, model in zip(callbacks or (), models, strict=callbacks is not None):
            callback(epoch, model)

    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with forked, _in_training(models), progress_of("training", epochs, shown=progress, unit="epoch") as bar:
        seed_torch(seeds[0], "autoencoders: layers")  # for layers that draw by themselves, such as dropout
        call(0)
        for epoch in range(1, epochs + 1):
            orders = [order_of(len(images), seed, epoch).split(recipe.batch_size) for seed in seeds]
            batches = (data[torch.stack(rows).to(data.device)].to(device) for rows in zip(*orders, strict=True))
            for mean, loss in zip(means, _descend_epoch(batches, losses_of, optimiser), strict=True):
                mean.append(loss)
            schedule.step()
            bar.set_postfix(loss=f"{sum(mean[-1] for mean in means) / len(means):.4f}")
            bar.update()
            call(epoch)
    return means


@contextmanager
def _in_training(models: Sequence[nn.Module]) -> Iterator[None]:
    """Training mode while models train, and eval mode after it, also where a callback raises."""
    try:
        for model in models:
            model.train()
        yield
    finally:
        for model in models:
            model.eval()


def order_of(n: int, seed: int, epoch: int) -> Tensor:
    """The order `(n,)` in which a model of this seed sees n images in an epoch."""
    return torch.from_numpy(generator(seed, epoch, "autoencoders: order of the images").permutation(n))


def _noise_of(seed: int) -> torch.Generator:
    """What a model of this seed draws its noise from."""
    return torch_generator(seed, "autoencoders: noise of the variant")


def _descend_epoch(
    batches: Iterator[Tensor], losses_of: Callable[[Tensor], Tensor], optimiser: torch.optim.Optimizer
) -> list[float]:
    """Train for one epoch on batches `(S, b, *image_shape)`; return the mean loss of each model."""
    found, sizes = [], []
    for batch in batches:
        losses = losses_of(batch)
        optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        optimiser.step()
        found.append(losses.detach())  # read at the end alone, since an accelerator waits where a value is read
        sizes.append(batch.shape[1])
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return (weights @ torch.stack(found).cpu().double()).tolist()


class _Loss(nn.Module):
    """A model's loss as the output of a module, since `functional_call` calls no other method."""

    def __init__(self, model: BottleneckAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, noise: Tensor, images: Tensor) -> Tensor:
        return self.model.loss_under(noise, images)


@contextmanager
def _views(modules: Sequence[nn.Module], stacked: dict[str, Tensor]) -> Iterator[None]:
    """Keep the modules' weights in the stacked ones meanwhile, so that callbacks see them as they are."""
    for i, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            parameter.data = stacked[name].data[i]
    try:
        yield
    finally:
        for module in modules:
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()


def _check(model: BottleneckAutoencoder, images: Tensor, seeds: Sequence[int]) -> None:
    """Check the images and the seeds of a training."""
    check_images(images, model.image_shape)
    if len(images) == 0:
        raise InputError("cannot train on no images: pass at least one")
    for seed in seeds:
        check_seed(seed)


def _check_many(
    models: Sequence[BottleneckAutoencoder], seeds: Sequence[int], callbacks: Sequence[Callback] | None
) -> None:
    """Check that models can train at once."""
    if not models or len(set(map(id, models))) < len(models):
        raise InputError("train_autoencoders takes at least one model, and each once: pass other models")
    for name, given in (("seeds", seeds), ("callbacks", callbacks)):
        if given is not None and len(given) != len(models):
            raise InputError(f"got {len(given)} {name} for {len(models)} models: pass one a model")
    first = _lines(models[0])
    for i, model in enumerate(models):
        for ours, theirs in zip_longest(_lines(model), first):
            if ours != theirs:
                raise InputError(f"models[{i}] has {ours} where models[0] has {theirs}: {ALONE}")
        # Batch norm and dropout are of a whole batch and of torch's global generator.
        drawing = any("Dropout" in type(module).__name__ for module in model.modules())
        if drawing or any(True for _ in model.buffers()):
            raise InputError(f"models[{i}] has dropout or buffers, which cannot be stacked: {ALONE}")
        if type(model).loss is not BottleneckAutoencoder.loss:
            raise InputError(f"models[{i}] has a loss of its own, which cannot be stacked: {ALONE}")


def _lines(model: BottleneckAutoencoder) -> list[str]:
    """What models must share to train at once, a line each."""
    lines = [f"the variant {model.variant} of strength {model.strength:g}", f"images {model.image_shape}"]
    for name, parameter in model.named_parameters():
        kind = f"{parameter.dtype} on {parameter.device}" + ("" if parameter.requires_grad else ", frozen")
        lines.append(f"{name} {tuple(parameter.shape)} of {kind}")
    return lines + [line.strip() for line in repr(model).splitlines()]
