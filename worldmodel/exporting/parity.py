"""Graphs in ONNX Runtime compared with PyTorch, on the frames of a dream."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.exporting.graphs import leaves
from worldmodel.heads import make_sampler
from worldmodel.world import WorldModel

FRAMES = 64  # of the dream
EXPECTED_EVERY = 8  # of the frames, every eighth is dreamt at temperature 0
LEAST_EQUAL = 0.99
"""Near ties may be decided otherwise, and change the codes drawn after them; below this share, a graph is wrong."""


@dataclasses.dataclass
class Differences:
    """What was compared of one graph."""

    equal: int = 0  # codes
    codes: int = 0
    largest: dict[str, float] = dataclasses.field(default_factory=dict)  # by output

    def add(self, name: str, ours: np.ndarray, theirs: Tensor) -> None:
        """Compare one output."""
        right = theirs.numpy()
        if name == "codes":
            self.equal, self.codes = self.equal + int((ours == right).sum()), self.codes + right.size
            return
        difference = float(np.abs(ours.astype(np.float64) - right.astype(np.float64)).max())
        self.largest[name] = max(difference, self.largest.get(name, 0.0))

    @property
    def share(self) -> float:
        """Of equal codes."""
        return self.equal / self.codes if self.codes else 1.0

    def __str__(self) -> str:
        codes = f"{self.equal:,} of {self.codes:,} codes equal" if self.codes else ""
        figures = ", ".join(f"{name} {value:.2g}" for name, value in self.largest.items())
        return "; ".join(part for part in (codes, f"largest difference of {figures}" if figures else "") if part)


def compare(world: WorldModel, folder: Path, frames: int = FRAMES) -> dict[str, Differences]:
    """Run every graph on the inputs that PyTorch gets in a dream of random actions, under the same noise.

    Raises :class:`ConfigError` for a graph that gives other codes.
    """
    run = {name: _session(folder / f"{name}.onnx") for name in ("encoder", "decoder", "prior")}
    found = {name: Differences() for name in run}
    for inputs, outputs in _dream(world, frames):
        for name, value in run["prior"](inputs).items():
            found["prior"].add(name, value, outputs[name])
        codes = outputs["codes"]
        picture = world.tokenizer.decode(codes)
        found["decoder"].add("frames", run["decoder"]({"codes": codes})["frames"], picture)
        found["encoder"].add("codes", run["encoder"]({"frames": picture})["codes"], world.tokenizer.encode(picture))
    for name, differences in found.items():
        if differences.share < LEAST_EQUAL:
            fault = f"the graph of the {name} gives other codes than PyTorch ({differences})"
            raise ConfigError(f"{fault}; another version of torch or of onnxscript may export it correctly")
    return found


@torch.no_grad()
def _dream(world: WorldModel, frames: int) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Inputs and outputs of each step of a dream in PyTorch, whose states are PyTorch's: no difference adds up."""
    prior, source = world.prior, torch.Generator().manual_seed(0)
    state = prior.begin(1)
    for number in range(frames):
        action = torch.randint(0, len(world.spec.action_names), (1,), generator=source)
        sampler = make_sampler("auto", 0.0 if number % EXPECTED_EVERY == EXPECTED_EVERY - 1 else 1.0)
        shape = (1, prior.positions, len(prior.head.vectors))
        noise = sampler.noise(shape, torch.empty(0), torch.Generator().manual_seed(number))
        step, after = prior.step(state, action, sampler, torch.Generator().manual_seed(number))
        drawn = torch.zeros(shape) if noise is None else noise
        given = {"action": action, "noise": drawn, "temperature": torch.tensor(sampler.temperature)}
        inputs = {**leaves(state.trunk, "trunk"), "previous": state.previous, **given}
        outputs = {"codes": step.codes, "reward": step.rewards, "end": step.ends, **leaves(after.trunk, "next.trunk")}
        yield inputs, outputs
        state = after


def _session(path: Path) -> Any:
    """A function of named tensors → named arrays, which runs a file on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {given.name for given in session.get_inputs()}

    def call(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        feeds = {name: tensor.numpy() for name, tensor in inputs.items() if name in wanted}
        return dict(zip(names, session.run(None, feeds), strict=True))

    return call
