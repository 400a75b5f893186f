"""The tracker of attractors: what it measures, and that a training does not notice it."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from support.maps import draws
from torch import nn

import fmprobe
from fmprobe.probes.trainer import trainer_callback
from fmprobe.probes.training import matched_curves, training_curves

SHAPE = (1, 16, 16)
TRAIN = torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(0))
TEST = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(1))


class Shaky(fmprobe.DenseAutoencoder):
    """With everything that a careless measurement would disturb: dropout, batch statistics, a frozen layer."""

    def __init__(self):
        super().__init__(3, 8, SHAPE)
        last = nn.Linear(8, 3)
        last.bias.requires_grad_(False)
        self.statistics = nn.BatchNorm1d(8)
        self.down = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), self.statistics, nn.Dropout(0.3), last)


def tracker(**settings):
    return fmprobe.AttractorTracker(TRAIN, TEST, **{"starts": 6, "max_steps": 40, **settings})


def trained(callback):
    torch.manual_seed(0)
    network = Shaky()
    losses = fmprobe.train_autoencoder(
        network, TRAIN, epochs=3, batch_size=8, learning_rate=1e-2, callback=callback, progress=False
    )
    return network, losses


def test_the_weights_are_the_same_with_and_without_it(tmp_path):
    (alone, losses), watch = trained(None), tracker(path=tmp_path / "log" / "records.jsonl")
    watched, watched_losses = trained(watch)
    assert losses == watched_losses
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    lines = (tmp_path / "log" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == watch.records
    assert [record["epoch"] for record in watch.records] == [0, 1, 2, 3]
    assert all(record["cost"]["evaluations"] > 0 < record["cost"]["seconds"] for record in watch.records)


def test_a_measurement_that_disturbed_would_be_noticed():
    """The test above can fail: one random number drawn, or one pass in train mode, changes the weights."""
    network, _ = trained(None)
    drawn, _ = trained(lambda epoch, model: torch.rand(1))
    passed, _ = trained(lambda epoch, model: model(TRAIN).sum())
    for other in (drawn, passed):
        assert any(
            not torch.equal(a, b)
            for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_modes_gradients_and_random_states_are_as_before():
    network = Shaky().train()
    network.statistics.eval()  # batch statistics frozen during training
    network.loss(TRAIN, torch.Generator()).backward()
    modes = [module.training for module in network.modules()]
    wants = [parameter.requires_grad for parameter in network.parameters()]
    grads: list[Any] = [None if p.grad is None else p.grad.clone() for p in network.parameters()]

    def states():
        return random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()  # noqa: NPY002

    def adapt(model):
        _ = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 - as an adapter might
        assert not any(module.training for module in model.modules())
        return model.autoencoder()

    before = states()
    assert tracker(adapt=adapt)(0, network) is not None
    assert states() == before
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == wants
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, grad)


@pytest.mark.parametrize(("epochs", "expected"), [(1, [0, 1, 2, 3]), (2, [0, 2]), ({1, 3}, [1, 3])])
def test_only_chosen_epochs_are_measured(epochs, expected, monkeypatch):
    watch = tracker(epochs=epochs)
    monkeypatch.setattr(watch, "measure", lambda model: {"cost": {}})
    network = Shaky()
    assert [epoch for epoch in range(4) if watch(epoch, network)] == expected


def drawn_to(points):
    """An Autoencoder whose latents, and decoded pixels, are drawn to the nearest of the points `(m, 256)`."""

    def decode(z):
        goal = points[torch.cdist(z, points).argmin(1)]
        return (goal + 0.3 * (z - goal)).reshape(-1, *SHAPE)

    return fmprobe.from_functions(lambda x: x.flatten(1), decode, image_shape=SHAPE, latent_shape=(256,))


def test_figures_are_those_of_the_sets():
    """Training images are their own attractors; noise is drawn to these and to one of its own."""
    away = -0.55 * draws(1, 256).abs()
    model = drawn_to(torch.cat([TRAIN[:4].flatten(1), away]))
    record = fmprobe.AttractorTracker(TRAIN[:4], TEST, starts=40, tol=1e-10).measure(model)
    assert record["train"] | {"steps": 0} == {
        "starts": 4,
        "status": {"converged": 4, "cycle": 0, "slow": 0, "wandering": 0, "diverged": 0},
        "converged": 1.0,
        "count": 4,
        "distinct": 1.0,
        "steps": 0,
    }
    found = fmprobe.find_attractors(model, 40, tol=1e-10, merge="cosine")
    cosine = cosine_similarity(TRAIN[:4].flatten(1).numpy(), found.latents.numpy())
    assert record["noise"]["count"] == len(found)
    assert record["matched"]["train"] == pytest.approx((cosine.max(1) > 0.99).mean())
    assert record["matched"]["noise"] == pytest.approx((cosine.max(0) > 0.99).mean())
    assert 0 < record["matched"]["noise"] < 1
    assert record["chamfer"] == pytest.approx((cosine.max(1).mean() + cosine.max(0).mean()) / 2, abs=1e-4)
    assert record["memorization"]["train"]["mean"] == pytest.approx(1, abs=1e-4)
    assert record["memorization"]["noise"]["mean"] < 0.99
    assert record["fpr95"] == 0  # training images start on the attractors, noise never
    error = (model.decode(model.encode(TEST)) - TEST).square().mean()
    assert record["test_error"] == pytest.approx(float(error), rel=1e-5)
    assert record["spectral_radius"]["max"] == pytest.approx(0.3, abs=1e-3)


def test_noise_that_behaves_as_data_is_not_told_apart():
    """One attractor, and latents of training images drawn as noise is: 95% of noise lies under the threshold too."""
    model = fmprobe.from_functions(
        lambda x: torch.special.ndtri(x.flatten(1)),  # of uniform pixels: N(0, I)
        lambda z: torch.special.ndtr(0.5 + 0.3 * (z - 0.5)).reshape(-1, *SHAPE),
        image_shape=SHAPE,
        latent_shape=(256,),
    )
    images = torch.special.ndtr(draws(300, 256, 9)).reshape(-1, *SHAPE)
    record = fmprobe.AttractorTracker(images, images, starts=300).measure(model)
    assert record["fpr95"] == pytest.approx(0.95, abs=0.05)
    assert record["chamfer"] == pytest.approx(1, abs=1e-4)
    assert (record["matched"]["train"], record["matched"]["noise"]) == (1, 1)


def test_it_costs_what_it_says():
    rows = 0

    def counted(z):
        nonlocal rows
        rows += len(z)
        return 0.5 * z + 0.1

    model = fmprobe.Autoencoder(
        lambda x: x.flatten(1),
        lambda z: z.reshape(-1, *SHAPE),
        image_shape=SHAPE,
        latent_shape=(256,),
        provenance={"model": "half"},
        latent_map=counted,
    )
    assert tracker().measure(model)["cost"]["evaluations"] == rows > 18


def test_where_nothing_settles_nothing_is_claimed():
    model = fmprobe.from_functions(
        lambda x: 2 * x.flatten(1) + 1, lambda z: z.reshape(-1, *SHAPE), image_shape=SHAPE, latent_shape=(256,)
    )
    record = tracker().measure(model)
    assert (record["train"]["count"], record["train"]["converged"]) == (0, 0)
    for key in ("chamfer", "matched", "fpr95", "spectral_radius"):
        assert record[key] is None
    assert record["memorization"] == record["rank"] == {"train": None, "noise": None}
    json.dumps(record, allow_nan=False)
    broken = fmprobe.from_functions(
        lambda x: x.flatten(1) * torch.nan, lambda z: z.reshape(-1, *SHAPE), image_shape=SHAPE, latent_shape=(256,)
    )
    record = {"epoch": 0, **tracker().measure(broken)}
    assert record["test_error"] is None
    json.dumps(record, allow_nan=False)
    training_curves([record])


def test_it_measures_behind_wrappers_and_on_the_first_process_alone(monkeypatch):
    network = Shaky()
    for wrapped in (nn.DataParallel(network), torch.compile(network)):
        assert tracker()(0, wrapped) is not None
    monkeypatch.setattr("fmprobe.probes.training._rank", lambda: 1)
    assert tracker()(0, network) is None


def test_a_loop_under_accelerate_takes_it():
    from accelerate import Accelerator

    watch, weights = tracker(epochs=2), []
    for callback in (watch, lambda epoch, model: None):
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model, optimiser = accelerator.prepare(network := Shaky(), torch.optim.SGD(network.parameters(), 0.1))
        for epoch in range(3):
            callback(epoch, model)
            loss = (model(TRAIN) - TRAIN).square().mean()
            accelerator.backward(loss)
            optimiser.step()
            optimiser.zero_grad()
        weights.append(accelerator.unwrap_model(model).state_dict())
    assert [record["epoch"] for record in watch.records] == [0, 2]
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


class Module(nn.Module):
    """The network as a Trainer takes it: its forward gives the loss."""

    def __init__(self):
        super().__init__()
        self.inner = Shaky()

    def forward(self, images):
        return {"loss": (self.inner(images) - images).square().mean()}


def test_a_transformers_trainer_takes_it(tmp_path):
    from transformers import Trainer, TrainingArguments

    watch, weights, logged = tracker(adapt=lambda model: model.inner.autoencoder()), [], []
    for callbacks in ([watch.for_trainer()], []):
        torch.manual_seed(0)
        arguments = TrainingArguments(
            str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            report_to=[],
            logging_strategy="epoch",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        model = Module()
        data: Any = [{"images": image} for image in TRAIN]
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
        trainer.train()
        weights.append(model.state_dict())
        logged.append([row for row in trainer.state.log_history if "loss" in row])
    assert [record["epoch"] for record in watch.records] == [0, 1, 2]
    assert [[row["step"] for row in rows] for rows in logged] == [
        [3, 6],
        [3, 6],
    ]  # its own log is as without the tracker
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_its_numbers_reach_the_log_of_a_trainer_and_its_trackers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter
    from transformers import Trainer, TrainingArguments
    from transformers.integrations.integration_utils import TensorBoardCallback

    watch = tracker(adapt=lambda model: model.inner.autoencoder())
    arguments = TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=2, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    board = TensorBoardCallback(SummaryWriter(str(tmp_path / "board")))
    data: Any = [{"images": image} for image in TRAIN]
    trainer = Trainer(Module(), arguments, train_dataset=data, callbacks=[board, watch.for_trainer()])
    trainer.train()
    rows = [row for row in trainer.state.log_history if "attractors/test_error" in row]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row, record in zip(rows, watch.records, strict=True):
        assert row["attractors/noise/converged"] == record["noise"]["converged"]
        assert row["attractors/test_error"] == record["test_error"]
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    written = [event.value for event in events.Scalars("train/attractors/test_error")]
    assert written == pytest.approx([record["test_error"] for record in watch.records])


def test_a_loop_of_ones_own_hands_its_numbers_to_any_tracker():
    told = []
    trained(watch := tracker(log=lambda values, step: told.append((step, values))))
    assert [step for step, _ in told] == [record["epoch"] for record in watch.records]
    for (_, values), record in zip(told, watch.records, strict=True):
        assert values["attractors/train/converged"] == record["train"]["converged"]
        assert all(isinstance(value, int | float) for value in values.values())


def test_a_network_that_gives_nan_is_told_at_once():
    network = Shaky()
    for parameter in network.down.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    watch = tracker()
    with pytest.warns(UserWarning, match="not finite at epoch 3: 6 train starts, 6 test starts"):
        record = watch(3, network)
    assert record is not None
    assert record["not_finite"] == {"train": 6, "test": 6}


def test_it_draws_its_records():
    watch = tracker()
    with pytest.raises(fmprobe.InputError, match="no records to draw"):
        watch.plot()
    trained(watch)
    assert len(watch.plot().axes) == 5  # four panels, one of them with a second scale


def test_a_model_it_does_not_know_is_named():
    with pytest.raises(fmprobe.InputError, match="adapt="):
        tracker()(0, nn.Linear(2, 2))
    for settings in ({"starts": 0}, {"epochs": 0}):
        with pytest.raises(fmprobe.InputError, match="at least 1"):
            tracker(**settings)


def test_curves_are_drawn_from_records():
    watch = tracker()
    trained(watch)
    records = json.loads(json.dumps(watch.records))
    assert {ax.get_xlabel() for ax in training_curves(records).axes} >= {"epoch"}
    figure = matched_curves({"middle": records, "other": records}, "noise")
    assert "noise attractors met by training" in figure.axes[0].get_ylabel()
    assert len(figure.axes[0].lines) == 2


def test_a_number_of_epochs_is_a_number():
    for epochs in (2, 2.0, np.int64(2)):
        trained(watch := tracker(epochs=epochs))
        assert [record["epoch"] for record in watch.records] == [0, 2]
    for epochs in (1.5, "2", [0, "1"]):
        with pytest.raises(fmprobe.InputError, match="expected a whole number, or those of chosen epochs"):
            tracker(epochs=epochs)


def test_a_trainer_that_goes_on_is_measured_at_its_own_epochs_alone():
    """Not again before the first step, nor where it ends within an epoch."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    seen = []
    callback = trainer_callback(lambda epoch, model: seen.append(epoch))
    steps = ((0, 0.0), (3, 1.0), (6, 2.0), (7, 2 + 1 / 3))
    arguments, control = TrainingArguments(use_cpu=True), TrainerControl()
    for begun in (0, 3):
        for step, epoch in steps:
            state = TrainerState(global_step=step, epoch=epoch, max_steps=7)
            if step == begun:
                callback.on_train_begin(arguments, state, control, model=None)
            elif step > begun:
                callback.on_epoch_end(arguments, state, control, model=None)
    assert seen == [0, 1, 2, 2]
