"""The optimisation loop: exact resumption, budgets, precision, interruption, failures."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from tiny import FIT
from torch import Tensor, nn

from worldmodel.config.checks import read
from worldmodel.errors import ConfigError, RunError
from worldmodel.nn.modules import cast
from worldmodel.training.base import Losses, Objective, step_seed
from worldmodel.training.checkpoint import load_tensors
from worldmodel.training.fit import Fit, FitResult, FitSettings, Hook, fit
from worldmodel.training.hooks import Checkpoint, EarlyStopping, Evaluation, JsonLines, TensorBoard, read_json_lines
from worldmodel.training.optim import MasterOptimizer, learning_rate_factor
from worldmodel.types import Segment, to_float


class Counter(nn.Module):
    """Statistics that are kept beside the weights, as a quantiser keeps them."""

    keep_float32 = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().float().mean((0, 2, 3)), 0.1)
        return x


class Toy(Objective):
    """A noisy autoencoder with dropout, a buffer and two terms."""

    headline = ("error",)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Dropout(0.1), nn.Conv2d(8, 3, 1))
        self.counter = Counter()

    def forward(self, batch: Segment, generator: torch.Generator) -> Losses:
        assert batch.frames is not None
        frames = to_float(batch.frames.flatten(0, 1))
        noise = torch.randn(frames.shape, generator=generator)
        out = self.counter(self.net((frames + 0.1 * noise).to(self.net[0].weight.dtype)).float())
        error = (out - frames).square().mean()
        return Losses({"error_term": error, "size": out.abs().mean()}, {"error": error.detach()})


def batches(step: int) -> Segment:
    generator = torch.Generator().manual_seed(step_seed(7, step))
    frames = torch.randint(0, 256, (4, 1, 3, 1, 1), generator=generator, dtype=torch.uint8).expand(4, 1, 3, 8, 8)
    flags = torch.zeros(4, 1, dtype=torch.bool)
    return Segment(flags.long(), flags.float(), flags, flags, ~flags, frames=frames)


class Trace(Hook):
    """Records the losses of every window; at a given step it does something."""

    def __init__(self, at: int = -1, action=lambda fit: None):
        self.losses: dict[int, float] = {}
        self.at, self.action = at, action

    def on_log(self, fit: Fit, means: dict[str, float]) -> None:
        self.losses[fit.step] = means["loss"]

    def on_step(self, fit: Fit) -> None:
        if fit.step == self.at:
            self.action(fit)


def interrupt(fit: Fit) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(
    path: Path, hooks: list[Hook], stage: str = "toy", weights: dict[str, float] | None = None, **settings
) -> FitResult:
    torch.manual_seed(0)
    chosen = {**FIT, "steps": 12, "log_every": 1, "warmup_steps": 2, **settings}
    toy = Toy()
    toy.loss_weights = {"size": 0.1} if weights is None else weights
    fabric = Fabric(accelerator="cpu", devices=1)
    return fit(fabric, toy, batches, FitSettings(**chosen), path, hooks, stage)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("log_every", [1, 4])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, precision: str, log_every: int) -> None:
    settings = {"precision": precision, "log_every": log_every}
    whole = Trace()
    expected = run(tmp_path / "whole.safetensors", [whole], **settings)

    path = tmp_path / "parts.safetensors"
    first, second = Trace(5, interrupt), Trace()
    with pytest.raises(KeyboardInterrupt):
        run(path, [first, Checkpoint(path, 1e9)], **settings)
    torch.manual_seed(999)  # whatever happened in between
    result = run(path, [second, Checkpoint(path, 1e9)], **settings)

    assert max(first.losses, default=0) <= 6 and len(whole.losses) == 12 // log_every
    assert {**first.losses, **second.losses} == whole.losses  # bit for bit
    assert result.steps == 12
    assert all(torch.equal(result.weights[name], expected.weights[name]) for name in expected.weights)


def test_periodic_checkpoint_survives_a_crash_between(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    whole, second = Trace(), Trace()
    run(tmp_path / "whole.safetensors", [whole])

    def crash(fit: Fit) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(path, [Checkpoint(path, 0.0), Trace(5, crash)])
    assert load_tensors(path, "")[1]["step"] == 5
    run(path, [second])
    assert second.losses == {step: loss for step, loss in whole.losses.items() if step > 5}


def test_finished_fit_is_not_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    first = run(path, [Checkpoint(path, 1e9)])
    again = Trace()
    second = run(path, [again])
    assert not again.losses
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_loss_falls_in_both_precisions(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        trace = Trace()
        run(tmp_path / precision, [trace], steps=150, learning_rate=1e-2, precision=precision, log_every=30)
        assert trace.losses[150] < 0.6 * trace.losses[30], precision


def test_bf16_leaves_marked_modules_and_collects_small_updates() -> None:
    module = cast(Toy(), torch.bfloat16)
    assert module.net[0].weight.dtype == torch.bfloat16 and module.counter.mean.dtype == torch.float32
    optimizer = MasterOptimizer(module, betas=(0.9, 0.99), weight_decay=0.0, clip=None, muon=0.0)
    weight = module.net[0].bias
    before = weight.detach().clone()
    tiny = float(before.abs().max()) / 1e4  # far below bfloat16's resolution of 1/256
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step(tiny)
    assert not torch.equal(weight, before)
    torch.testing.assert_close(before.float() - weight.float(), torch.full((8,), 100 * tiny), rtol=0.2, atol=2e-3)


def test_master_optimizer_equals_adamw_on_float32() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4), nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    optimizer = MasterOptimizer(ours, betas=(0.9, 0.95), weight_decay=0.1, clip=0.5, muon=0.0)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for seed in range(5):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))
        ours(x).square().sum().backward()
        norm = optimizer.step(1e-2)
        adam.zero_grad()
        theirs(x).square().sum().backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adam.step()
        torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_optimizer_copes_with_gradients_laid_out_differently() -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = MasterOptimizer(conv, betas=(0.9, 0.99), weight_decay=0.0, clip=None, muon=0.0)
        for step in range(3):
            gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(step))
            conv.weight.grad = gradient.contiguous(memory_format=layout)
            conv.bias.grad = torch.zeros(4)
            optimizer.step(1e-2)
        results.append(conv.weight.detach().clone())
    torch.testing.assert_close(results[0], results[1])


def test_average_follows_the_warm_up_formula(tmp_path: Path) -> None:
    history: list[Tensor] = []

    class Record(Hook):
        def on_step(self, fit: Fit) -> None:
            history.append(fit.objective.net[0].weight.detach().clone())

    result = run(tmp_path / "c", [Record()], ema=0.5)
    torch.manual_seed(0)
    average = Toy().net[0].weight.detach()
    for step, weight in enumerate(history):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(result.weights["net.0.weight"], average)
    no_average = run(tmp_path / "d", [Record()], ema=0.0)
    assert torch.equal(no_average.weights["net.0.weight"], history[-1])


def test_schedule_warms_up_and_ends_at_zero() -> None:
    assert learning_rate_factor(0, 0.0, 10, "cosine") == pytest.approx(0.1)
    assert learning_rate_factor(9, 0.0, 10, "linear") == 1
    assert learning_rate_factor(50, 0.5, 10, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(50, 0.25, 10, "linear") == pytest.approx(0.75)
    assert learning_rate_factor(50, 1.0, 10, "cosine") == pytest.approx(0)
    assert learning_rate_factor(50, 1.0, 0, "none") == 1


def test_time_budget_ends_the_fit_with_a_decayed_rate(tmp_path: Path) -> None:
    class Clock(Hook):
        """Pretends that a step takes ten seconds."""

        rates: list[float] = []  # noqa: RUF012

        def on_step(self, fit: Fit) -> None:
            fit.elapsed_before += 10
            self.rates.append(fit.learning_rate)

    path = tmp_path / "c"
    clock = Clock()
    result = run(path, [clock, Checkpoint(path, 1e9)], steps=10_000, max_seconds=95.0, warmup_steps=0)
    assert result.steps == 10 or result.steps == 11
    assert clock.rates == sorted(clock.rates, reverse=True) and clock.rates[-1] < 0.05 * clock.rates[0]
    assert load_tensors(path, "")[1]["elapsed"] >= 95  # so that a resumed run does not get the time again


def test_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c"

    def spoil(fit: Fit) -> None:
        with torch.no_grad():
            fit.objective.net[0].weight.fill_(float("nan"))

    with pytest.raises(
        RunError, match=r"toy: the loss term 'error_term' became nan at step 7; the last checkpoint is kept"
    ):
        run(path, [Checkpoint(path, 0.0), Trace(6, spoil)])
    tensors, meta = load_tensors(path, "")
    assert meta["step"] == 6 and all(bool(t.isfinite().all()) for t in tensors.values())


def test_weight_for_a_missing_term_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weight for the loss term 'commitment'; the terms are error_term, size"):
        run(tmp_path / "c", [], weights={"commitment": 0.25})


def test_weights_multiply_their_terms(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    run(tmp_path / "c", [JsonLines(path)], steps=1, weights={"size": 0.5, "error_term": 3.0})
    (line,) = read_json_lines(path)
    assert line["loss"] == pytest.approx(3 * line["error_term"] + 0.5 * line["size"])


def test_metrics_lines_behind_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path, metrics = tmp_path / "c", tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"stage": "other", "step": 50, "loss": 1.0}) + "\n")

    def crash(fit: Fit) -> None:
        with metrics.open("a") as file:
            file.write('{"stage": "toy", "st')  # cut short
        raise RuntimeError("power cut")

    save = Trace(3, lambda fit: fit.save(path))
    with pytest.raises(RuntimeError):
        run(path, [JsonLines(metrics), save, Trace(6, crash)])
    run(path, [JsonLines(metrics)])
    lines = read_json_lines(metrics)
    assert [line["step"] for line in lines if line["stage"] == "toy"] == list(range(1, 13))
    assert lines[0] == {"stage": "other", "step": 50, "loss": 1.0}
    assert all(json.loads(line) for line in metrics.read_text().splitlines())
    assert {"seconds", "learning_rate", "loss", "error_term", "size", "gradient_norm", "error"} <= set(lines[-1])


def test_a_crash_behind_the_last_checkpoint_repeats_no_line_of_metrics(tmp_path: Path) -> None:
    path, metrics = tmp_path / "c", tmp_path / "metrics.jsonl"

    def chain(*last: Hook) -> list[Hook]:
        lines = JsonLines(metrics)
        return [lines, Evaluation(5, lambda objective: {"held_out_loss": 1.0}, (lines,)), Checkpoint(path, 0), *last]

    class Crash(Hook):
        def on_end(self, fit: Fit) -> None:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        run(path, chain(Crash()))
    before = read_json_lines(metrics)
    assert [line["step"] for line in before if "loss" not in line] == [5, 10, 12]
    run(path, chain())
    assert read_json_lines(metrics) == before


def test_an_evaluation_after_a_crash_states_the_learning_rate_of_its_step(tmp_path: Path) -> None:
    path, metrics = tmp_path / "c", tmp_path / "metrics.jsonl"

    def crash(fit: Fit) -> dict[str, float]:
        raise RuntimeError("power cut")

    def chain(evaluate: Callable[[Any], dict[str, float]]) -> list[Hook]:
        lines = JsonLines(metrics)
        return [lines, Checkpoint(path, 0), Evaluation(100, evaluate, (lines,))]

    with pytest.raises(RuntimeError):
        run(path, chain(crash))
    run(path, chain(lambda objective: {"held_out_loss": 1.0}))
    *_, last, evaluation = read_json_lines(metrics)
    assert "held_out_loss" in evaluation and evaluation["step"] == last["step"] == 12
    assert evaluation["learning_rate"] == last["learning_rate"] > 0


def test_a_full_disk_in_the_thread_of_tensorboard_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer(threading.Thread):
        __module__ = "tensorboard.summary.writer"

    seen: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(str(args.exc_value)))
    before, board = threading.excepthook, TensorBoard(tmp_path / "tensorboard")

    def fails(kind: type[threading.Thread], error: Exception) -> None:
        def target() -> None:
            raise error

        thread = kind(target=target)
        thread.start()
        thread.join()

    def threads(fit: Fit) -> None:
        fails(Writer, OSError("no space"))
        fails(Writer, ValueError("fault of tensorboard"))
        fails(threading.Thread, OSError("of another thread"))

    run(tmp_path / "c", [board, Trace(1, threads)], steps=2)
    assert seen == ["fault of tensorboard", "of another thread"] and threading.excepthook is before


def test_evaluation_uses_averaged_weights_and_disturbs_nothing(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def evaluate(objective: Objective) -> dict[str, float]:
        assert not objective.training
        torch.rand(100)  # a hook that draws
        seen.append({name: value.clone() for name, value in objective.state_dict().items()})
        return {"held_out_loss": 1.5}

    plain, watched = Trace(), Trace()
    run(tmp_path / "a", [plain])
    lines = JsonLines(tmp_path / "m.jsonl")
    board = TensorBoard(tmp_path / "board")
    result = run(tmp_path / "b", [watched, lines, board, Evaluation(5, evaluate, (lines, board))])
    assert watched.losses == plain.losses
    assert len(seen) == 3  # steps 5, 10 and the end
    assert torch.equal(seen[-1]["net.0.weight"], result.weights["net.0.weight"])
    assert [r["step"] for r in read_json_lines(tmp_path / "m.jsonl") if "held_out_loss" in r] == [5, 10, 12]
    assert list((tmp_path / "board").glob("events.*"))


@pytest.mark.parametrize("stop", [None, 4, 5])
def test_early_stopping_keeps_the_best_weights_across_interruptions(tmp_path: Path, stop: int | None) -> None:
    path = tmp_path / "c"
    held_out = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5}
    seen: dict[int, dict[str, Tensor]] = {}

    def attempt(other: Hook) -> FitResult:
        early = EarlyStopping(tmp_path / "best", 4)

        def evaluate(objective: Objective) -> dict[str, float]:
            step = evaluation._step
            seen[step] = {name: value.clone() for name, value in objective.state_dict().items()}
            return {"held_out_loss": held_out.get(step, 9.0)}

        evaluation = Evaluation(2, evaluate, (early,))
        return early.kept(run(path, [early, evaluation, Checkpoint(path, 1e9), other], steps=100))

    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            attempt(Trace(stop, interrupt))
    result = attempt(Trace())
    assert result.steps == 9 and result.kept_step == 4  # the step at which the processes agree is the last one
    assert all(torch.equal(seen[4][name], value) for name, value in result.weights.items())
    again = attempt(Trace())
    assert again.steps == 9 and again.kept_step == 4


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    run(path, [Checkpoint(path, 1e9)])

    class Wider(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)

    with pytest.raises(RunError, match=r"does not fit the model: .*extra.* remove it to train this stage again"):
        fit(Fabric(accelerator="cpu", devices=1), Wider(), batches, FitSettings(**FIT, steps=20), path)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"max_seconds": 0.0}, {"learning_rate": -1.0}, {"log_every": 0}, {"ema": 1.0}]
)
def test_settings_that_cannot_be_honoured(wrong: dict) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"training.fit.{name} is {value}; it must be"):
        read(FitSettings, {**FIT, "steps": 1, **wrong}, "training.fit")


def test_settings_have_these_fields() -> None:
    assert {f.name for f in dataclasses.fields(FitSettings)} >= {"steps", "max_seconds", "ema", "precision"}
