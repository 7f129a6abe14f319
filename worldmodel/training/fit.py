"""The one optimisation loop. It is independent of the model: an objective turns a batch into named losses."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from lightning_fabric import Fabric
from torch import Tensor

from worldmodel.errors import ConfigError, RunError
from worldmodel.nn.modules import Precision, cast, resolve_precision
from worldmodel.training.base import Ahead, Batches, Objective, RunningMeans, step_seed
from worldmodel.training.checkpoint import check_fit, load_tensors, save_tensors
from worldmodel.training.optim import Decay, MasterOptimizer, WeightAverage, learning_rate_factor
from worldmodel.types import Segment
from worldmodel.util.progress import deferred
from worldmodel.util.ranges import Count, Positive, Seed, ShareBelowOne, Whole

Factor = Annotated[float, Ge(0), Le(1e6)]

AGREE_EVERY = 10
"""Steps between two agreements of several processes on the clock and on interruptions (each costs a round trip)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The choices of one fit, which ends after ``steps`` or ``max_seconds``, whichever comes first.

    The values that training takes for them are stated in ``configs/stage.yaml``.
    """

    steps: Count
    max_seconds: Positive | None
    learning_rate: Annotated[float, Gt(0), Le(1e30)]  # more is no float32
    warmup_steps: Whole
    decay: Decay
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.99)
    weight_decay: Factor  # on matrices and kernels only
    clip: Positive | None  # largest norm of the gradient
    muon: Factor  # Muon's learning rate for hidden weights, as a multiple of learning_rate; 0: AdamW for all
    ema: ShareBelowOne  # decay of the average of the weights; 0: none
    precision: Precision
    log_every: Count  # steps over which metrics are averaged
    seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a finished fit hands over."""

    steps: int  # updates made, over all sessions
    seconds: float  # spent, over all sessions
    weights: dict[str, Tensor]  # state dict of the objective, averaged over training, float32
    kept_step: int | None = None  # that the weights are of, if it is not the last one


class Fit:
    """The state of one optimisation, which hooks may read. ``step`` counts the updates that were made."""

    def __init__(self, fabric: Fabric, objective: Objective, settings: FitSettings, stage: str):
        self.fabric, self.objective, self.settings, self.stage = fabric, objective, settings, stage
        cast(objective, resolve_precision(settings.precision, fabric.device))
        self.module = fabric.setup_module(objective)
        decay, clip, muon = settings.weight_decay, settings.clip, settings.muon
        self.optimizer = MasterOptimizer(objective, betas=settings.betas, weight_decay=decay, clip=clip, muon=muon)
        self.average = WeightAverage(self.optimizer, settings.ema)
        self.window = RunningMeans()
        self.terms: tuple[str, ...] = ()
        self.step = self.first_step = 0  # over all sessions; at the start of this one
        self.elapsed = self.elapsed_before = 0.0  # seconds, likewise, the same on every process
        self.learning_rate = 0.0
        self.interrupted = self.finished = self._finish = False  # finished: before the budget is spent
        self._started = time.monotonic()

    @property
    def progress(self) -> float:
        """In [0, 1]: the steps made or the seconds spent as a share of those allowed, or 1 once finished."""
        if self.finished:
            return 1.0
        by_clock = 0.0 if self.settings.max_seconds is None else self.elapsed / self.settings.max_seconds
        return min(1.0, max(self.step / self.settings.steps, by_clock))

    def finish(self) -> None:
        """End the fit at the next step on which all processes agree; one of them may call this."""
        self._finish = True

    def agree(self, interrupted: bool) -> None:
        """Reads the clock. Several processes agree on it, on interruptions and on the end: all stop at one step."""
        elapsed = self.elapsed_before + time.monotonic() - self._started
        if self.fabric.world_size > 1:
            if self.step % AGREE_EVERY and self.step not in (self.first_step, self.settings.steps):
                return
            own = [elapsed, float(interrupted), float(self._finish)]
            votes = torch.tensor(own, dtype=torch.float64, device=self.fabric.device)
            elapsed, *others = torch.as_tensor(self.fabric.all_reduce(votes, reduce_op="max")).tolist()
            interrupted, self._finish = (vote > 0 for vote in others)
        self.elapsed, self.interrupted, self.finished = elapsed, interrupted, self._finish

    def check_start(self, checkpoint: Path) -> None:
        """Raises :class:`RunError` unless all processes start at the same step."""
        if self.fabric.world_size > 1:
            own = torch.tensor(self.step, device=self.fabric.device)
            steps = torch.as_tensor(self.fabric.all_gather(own)).tolist()
            if len(set(steps)) > 1:
                raise RunError(f"the processes read {checkpoint} at different steps ({sorted(set(steps))}); all nodes "
                               "must share the folder of the runs")  # fmt: skip

    def update(self, batch: Segment) -> None:
        """One step: losses, gradients, weights, average. All its randomness comes from (seed, step, rank)."""
        seed = step_seed(self.settings.seed, self.step, self.fabric.global_rank)
        torch.manual_seed(seed)  # for modules like nn.Dropout that cannot be handed a generator
        generator = torch.Generator(self.fabric.device).manual_seed(seed)
        losses = self.module(batch.to(self.fabric.device), generator)
        loss = weighted_sum(losses.terms, self.objective.loss_weights)
        self.fabric.backward(loss)
        factor = learning_rate_factor(self.step, self.progress, self.settings.warmup_steps, self.settings.decay)
        self.learning_rate = self.settings.learning_rate * factor
        norm = self.optimizer.step(self.learning_rate)
        self.average.update(self.step)
        self.terms = ("loss", *losses.terms, "gradient_norm")
        self.window.add({"loss": loss, **losses.terms, "gradient_norm": norm, **losses.metrics})
        self.step += 1
        if self.fabric.device.type == "cpu" and self.fabric.world_size == 1:
            self.check_finite()  # elsewhere this would wait for the device or the others: at the end of a window then

    def check_finite(self) -> dict[str, float]:
        """Means of the window. Raises :class:`RunError` when a loss term is no longer a number."""
        means = self.window.means(self.fabric)
        # The terms are checked before their sum, so that the message names the term at fault.
        for name in sorted(self.terms, key=lambda name: name == "loss"):
            if not math.isfinite(means.get(name, 0.0)):
                raise RunError(
                    f"{self.stage}: the loss term {name!r} became {means[name]} at step {self.step}; the last "
                    f"checkpoint is kept: go on from it with a lower training.{self.stage}.learning_rate "
                    f"(now {self.settings.learning_rate:g})"
                )
        return means

    def weights(self) -> dict[str, Tensor]:
        """State dict of the objective with averaged float32 parameters; floating buffers in float32."""
        averages = {id(p): a for p, a in zip(self.optimizer.parameters, self.average.averages, strict=True)}
        result = {}
        for name, value in self.objective.state_dict(keep_vars=True).items():
            value = averages.get(id(value), value).detach()
            result[name] = (value.float() if value.is_floating_point() else value).to("cpu", copy=True)
        return result

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Objective]:
        """Inside, the objective is in evaluation mode, computes with the averaged weights, and records no gradients."""
        with self.average.applied(), torch.no_grad():
            self.objective.eval()
            try:
                yield self.objective
            finally:
                self.objective.train()

    def _tensors(self) -> dict[str, Tensor]:
        parameters = set(self.optimizer.names)
        buffers = {f"buffer.{n}": v for n, v in self.objective.state_dict().items() if n not in parameters}
        return {**self.optimizer.state(), **self.average.state(), **buffers}

    def save(self, path: Path) -> None:
        """Writes the checkpoint; every process must call this. Nothing is written once a loss is not a number."""
        self.check_finite()
        if self.fabric.is_global_zero:
            meta = {"stage": self.stage, "step": self.step, "elapsed": self.elapsed, "window": self.window.state()}
            save_tensors(path, self._tensors(), {**meta, "learning_rate": self.learning_rate})

    def resume(self, path: Path) -> None:
        """Goes on from a checkpoint. All processes read the file: nodes must share the folder of the runs."""
        remedy = "remove it to train this stage again, or start another run with run=name"
        tensors, meta = load_tensors(path, remedy)
        own = self._tensors()
        counters = [f"buffer.{name}" for name in self.objective.counters]
        if any(name in tensors and tensors[name].shape != own[name].shape for name in counters):
            tensors.update({name: own[name] for name in counters})
        optional = ("moment1.", "moment2.", "updates.", "momentum.")  # only of parameters that ever had a gradient
        expected = {n: t for n, t in own.items() if not n.startswith(optional)}
        check_fit(path, {n: t for n, t in tensors.items() if not n.startswith(optional)}, expected, remedy)
        self.optimizer.load(tensors)
        self.average.load(tensors)
        for name, value in self.objective.state_dict().items():
            if f"buffer.{name}" in tensors:
                value.copy_(tensors[f"buffer.{name}"])
        self.window.load(meta["window"], self.fabric.device)
        self.learning_rate = float(meta.get("learning_rate", 0.0))  # older files lack it; it is logged only
        self.step = self.first_step = int(meta["step"])
        self.elapsed = self.elapsed_before = float(meta["elapsed"])
        self._started = time.monotonic()


class Hook:
    """What happens beside the optimisation. A hook overrides the moments it cares about.

    The loop calls hooks in order, on every process; those that write do so on the first one only.
    """

    def on_start(self, fit: Fit) -> None:
        """Before the first step of this session, after a checkpoint was read."""

    def on_log(self, fit: Fit, values: dict[str, float]) -> None:
        """Values to log: at the end of a window of ``log_every`` steps the means of loss, terms and metrics."""

    def on_step(self, fit: Fit) -> None:
        """After every step."""

    def on_end(self, fit: Fit) -> None:
        """After the last step, or after an interruption (``fit.interrupted``); not after an error."""

    def close(self) -> None:
        """At last, whatever happened."""


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight · term. Raises :class:`ConfigError` for a weight whose term does not exist."""
    for name in weights:
        if name not in terms:
            raise ConfigError(f"there is a weight for the loss term {name!r}; the terms are {', '.join(terms)}")
    total: Tensor | None = None
    for name, term in terms.items():
        weight = weights.get(name, 1.0)
        if total is not None:
            total = torch.add(total, term.float(), alpha=weight)
        else:
            total = term.float() if weight == 1 else weight * term.float()
    assert total is not None, "an objective without terms"
    return total


def fit(
    fabric: Fabric,
    objective: Objective,
    batches: Batches,
    settings: FitSettings,
    checkpoint: Path,
    hooks: Sequence[Hook] = (),
    stage: str = "fit",
) -> FitResult:
    """Minimises an objective; goes on from ``checkpoint`` where that file exists.

    A fit that is budgeted by steps gives the same losses, interrupted and resumed or not, unless its objective says
    otherwise. On SIGTERM or Ctrl-C the step is finished, the hooks' ``on_end`` runs, and KeyboardInterrupt is raised.
    Raises :class:`RunError` when a loss is not a number any more or the checkpoint is damaged, :class:`ConfigError` for
    settings that do not fit.
    """
    state = Fit(fabric, objective, settings, stage)
    if checkpoint.is_file():
        state.resume(checkpoint)
    state.check_start(checkpoint)
    objective.train()
    ahead = Ahead(batches)
    try:
        with deferred() as interrupted:
            for hook in hooks:
                hook.on_start(state)
            state.agree(interrupted())
            while state.progress < 1 and not state.interrupted:
                state.update(ahead(state.step))
                state.agree(interrupted())
                if state.step % settings.log_every == 0 or state.progress >= 1:
                    means = state.check_finite()
                    state.window = RunningMeans()
                    for hook in hooks:
                        hook.on_log(state, means)
                for hook in hooks:
                    hook.on_step(state)
            for hook in hooks:
                hook.on_end(state)
    finally:
        ahead.close()
        for hook in hooks:
            hook.close()
    if state.interrupted:
        raise KeyboardInterrupt
    return FitResult(state.step, state.elapsed, state.weights())
