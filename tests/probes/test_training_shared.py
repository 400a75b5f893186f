"""The tracker in a loop under accelerate, in two processes that train together."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.runs import launch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fmprobe.convolutional import DenseAutoencoder
from fmprobe.probes.training import AttractorTracker

SHAPE = (1, 16, 16)
IMAGES = torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(0))


def train(out: Path, watched: bool) -> int:
    """Three epochs of this process's share of the images; weights and facts go to `out`."""
    AcceleratorState._reset_state(reset_partial_state=True)  # what the process that was forked had
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    network = DenseAutoencoder(2, 8, SHAPE)
    network.down = nn.Sequential(network.down, nn.Dropout(0.2))  # draws from the state that a tracker must not touch
    data = DataLoader(TensorDataset(IMAGES), batch_size=4, shuffle=True)
    model, optimiser, batches = accelerator.prepare(network, torch.optim.Adam(network.parameters(), 1e-2), data)
    tracker = AttractorTracker(IMAGES, IMAGES[:8], starts=4, max_steps=30, path=out / "records.jsonl")
    for epoch in range(3):
        if watched:
            tracker(epoch, model)
        for (batch,) in batches:
            accelerator.backward((model(batch) - batch).square().mean())
            optimiser.step()
            optimiser.zero_grad()
    facts = {"records": len(tracker.records), "processes": accelerator.num_processes, "batches": len(batches)}
    metadata = {"wrapper": type(model).__name__, **{name: str(value) for name, value in facts.items()}}
    save_file(accelerator.unwrap_model(model).state_dict(), out / f"{accelerator.process_index}", metadata=metadata)
    accelerator.end_training()
    return 0


def test_two_processes_train_as_without_it_and_one_of_them_measures(tmp_path):
    runs = {name: tmp_path / name for name in ("watched", "alone")}
    for name, out in runs.items():
        out.mkdir()
        processes = launch(2, train, out, watched=name == "watched", log=tmp_path / "log")
        for process in processes:
            process.join(timeout=120)
        assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "log").read_text()

    lines = (runs["watched"] / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]
    assert not (runs["alone"] / "records.jsonl").exists()
    files = [out / rank for out in runs.values() for rank in ("0", "1")]
    weights, facts = [load_file(path) for path in files], []
    for path in files:
        with safe_open(path, "pt") as file:
            facts.append(file.metadata())
    assert [row.pop("records") for row in facts] == ["3", "0", "0", "0"]
    assert facts == [{"wrapper": "DistributedDataParallel", "processes": "2", "batches": "3"}] * 4
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())
