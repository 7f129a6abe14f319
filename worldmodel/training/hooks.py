"""Hooks: what happens beside the optimisation. Each does one thing; the loop calls them in order, on every process."""

import dataclasses
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn

from worldmodel.training.base import Batches, Objective
from worldmodel.training.checkpoint import load_tensors, save_tensors
from worldmodel.training.fit import Fit, FitResult, Hook, weighted_sum
from worldmodel.util.files import naming, replace_text
from worldmodel.util.progress import SHOWN, Bars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Checkpoint(Hook):
    """Writes the checkpoint every so many seconds and at the end."""

    def __init__(self, path: Path, every_seconds: float):
        self.path, self.every_seconds = path, every_seconds
        self._last, self._step = 0.0, 0

    def on_start(self, fit: Fit) -> None:
        self._last, self._step = fit.elapsed, fit.step

    def on_step(self, fit: Fit) -> None:
        # The clock of the fit is the same on every process, so all of them decide alike.
        if fit.elapsed - self._last >= self.every_seconds:
            self._save(fit)

    def on_end(self, fit: Fit) -> None:
        if fit.step != self._step:
            self._save(fit)

    def _save(self, fit: Fit) -> None:
        fit.save(self.path)
        self._last, self._step = fit.elapsed, fit.step


class JsonLines(Hook):
    """Appends one JSON object a window to ``metrics.jsonl``: stage, step, seconds, learning_rate, then the means.

    On resume the lines of this stage behind the resumed step are dropped, and any line that a crash cut short. Lines
    that were written before the crash are not written again.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: TextIO | None = None
        self._written: set[tuple[int, bool]] = set()  # steps, and whether the line is of a window or an evaluation

    def on_start(self, fit: Fit) -> None:
        if not fit.fabric.is_global_zero:
            return
        records = [r for r in read_json_lines(self.path) if r.get("stage") != fit.stage or r["step"] <= fit.step]
        self._written = {(r["step"], "loss" in r) for r in records if r.get("stage") == fit.stage}
        replace_text(self.path, "".join(json.dumps(record) + "\n" for record in records))
        self._file = self.path.open("a")

    def on_log(self, fit: Fit, values: dict[str, float]) -> None:
        if self._file is None or (fit.step, "loss" in values) in self._written:
            return
        facts = {"stage": fit.stage, "step": fit.step, "seconds": round(fit.elapsed, 3)}
        # JSON has no infinity; the PSNR of a perfect copy is one.
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with naming(self.path):
            self._file.write(json.dumps({**facts, "learning_rate": fit.learning_rate, **plain}) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_json_lines(path: Path) -> list[dict]:
    """The whole lines of a metrics file, in order; none where there is no file."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut short by a crash
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


class TensorBoard(Hook):
    """Scalars for TensorBoard in a folder, named ``stage/name``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: SummaryWriter | None = None
        self._excepthook = threading.excepthook

    def on_start(self, fit: Fit) -> None:
        if fit.fabric.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            threading.excepthook = self._in_thread
            self._writer = SummaryWriter(str(self.folder), purge_step=fit.step + 1 if fit.step else None)

    def on_log(self, fit: Fit, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in {**values, "learning_rate": fit.learning_rate}.items():
                self._writer.add_scalar(f"{fit.stage}/{name}", value, fit.step)

    def close(self) -> None:
        if self._writer is not None:
            threading.excepthook = self._excepthook
            self._writer.close()
            self._writer = None

    def _in_thread(self, args: threading.ExceptHookArgs) -> None:
        """Errors of the system in TensorBoard's thread (a full disk) are raised by the next call of the writer."""
        if not (issubclass(args.exc_type, OSError) and type(args.thread).__module__.startswith("tensorboard")):
            self._excepthook(args)


class EarlyStopping(Hook):
    """Keeps the averaged weights with the lowest held-out loss in a file and ends a fit that has not improved on them
    for ``patience`` steps."""

    def __init__(self, path: Path, patience: int):
        self.path, self.patience = path, patience
        self.loss, self.step = math.inf, 0

    def on_start(self, fit: Fit) -> None:
        if fit.step and self.path.is_file():  # a file without a checkpoint is left from an earlier training
            _, facts = load_tensors(self.path, "remove the checkpoint beside it to train this stage again")
            self.loss, self.step = facts["loss"], facts["step"]
            self._end(fit)

    def on_log(self, fit: Fit, values: dict[str, float]) -> None:
        if "held_out_loss" not in values:
            return
        if values["held_out_loss"] < self.loss:
            self.loss, self.step = values["held_out_loss"], fit.step
            save_tensors(self.path, fit.weights(), {"loss": self.loss, "step": self.step})
        self._end(fit)

    def _end(self, fit: Fit) -> None:
        if fit.step - self.step >= self.patience:
            fit.finish()

    def kept(self, result: FitResult) -> FitResult:
        """The result with the kept weights, if there are any."""
        if self.loss == math.inf:
            return result
        return dataclasses.replace(result, kept_step=self.step, weights=load_tensors(self.path, "train again")[0])


class Evaluation(Hook):
    """Every so many steps and at the end, calls a function with the objective under its averaged weights.

    Its named results go to the other hooks that write. Only one process evaluates; the others wait at the next step.
    """

    def __init__(self, every_steps: int, evaluate: Callable[[Objective], dict[str, float]], writers: tuple[Hook, ...]):
        self.every_steps, self.evaluate, self.writers = every_steps, evaluate, writers
        self._step = -1

    def on_step(self, fit: Fit) -> None:
        if fit.step % self.every_steps == 0:
            self._run(fit)

    def on_end(self, fit: Fit) -> None:
        if not fit.interrupted and fit.step != self._step:
            self._run(fit)

    def _run(self, fit: Fit) -> None:
        self._step = fit.step
        if not fit.fabric.is_global_zero:
            return
        with fit.averaged() as objective:
            values = self.evaluate(objective)
        for writer in self.writers:
            writer.on_log(fit, values)


@dataclasses.dataclass(frozen=True)
class Measure:
    """Mean loss, terms and metrics over the same few batches of held-out windows, named ``held_out_…``."""

    batches: Batches
    count: int
    device: torch.device

    def __call__(self, objective: Objective) -> dict[str, float]:
        sums: dict[str, float] = {}
        for index in range(self.count):
            losses = objective(self.batches(index).to(self.device), torch.Generator(self.device).manual_seed(index))
            loss = weighted_sum(losses.terms, objective.loss_weights)
            for name, value in ({"loss": loss} | losses.terms | losses.metrics).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {f"held_out_{name}": total / self.count for name, total in sums.items()}


class ProgressBar(Hook):
    """Loss, headline metrics, steps/s and time left: a bar on a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        text = TextColumn("{task.description} {task.percentage:3.0f}%")
        columns = (text, BarColumn(24), TimeRemainingColumn(), SHOWN)
        self._bars = Bars(Console(), columns=columns)
        self._task: TaskID | None = None
        self._figures = ""

    def on_start(self, fit: Fit) -> None:
        if not fit.fabric.is_global_zero:
            return
        if fit.step:
            resumed = f"{fit.stage}: going on at step {fit.step} ({fit.elapsed:.0f} s done)"
            self._bars.console.print(resumed, highlight=False)
        self._task = self._bars.add_task(fit.stage, total=1.0, completed=fit.progress)
        self._bars.start()

    def on_log(self, fit: Fit, values: dict[str, float]) -> None:
        names = ["loss", *(name for name in fit.objective.headline if name in values)]
        self._figures = "  ".join(f"{name} {values[name]:.4g}" for name in names)

    def on_step(self, fit: Fit) -> None:
        if self._task is not None:
            rate = (fit.step - fit.first_step) / max(fit.elapsed - fit.elapsed_before, 1e-9)
            shown = f"step {fit.step}  {rate:.1f} steps/s  {self._figures}"
            self._bars.update(self._task, completed=fit.progress, shown=shown)

    def close(self) -> None:
        if self._task is not None:
            self._bars.stop()
