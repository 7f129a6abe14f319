"""What the sections of the benchmark share: made-up data and models, timing, and the report."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.timing import seconds, synchronize
from worldmodel.config.cli import compose_config
from worldmodel.nn.modules import cast, resolve_precision
from worldmodel.priors import Prior
from worldmodel.runs.models import build_prior, build_tokenizer
from worldmodel.tokenizers import require_codes
from worldmodel.types import Spec
from worldmodel.world import Precision, WorldModel

WORLD = Spec("made-up", (3, 64, 64), ("noop", "forward", "left"), 10.0)
SMALLER = ("tokenizer.widths=[16,16,16]", "prior.trunk.width=16", "prior.head.width=16", "prior.trunk.blocks=1")


@dataclasses.dataclass
class Bench:
    """The device, the sizes and the results."""

    device: torch.device
    tiny: bool  # small sizes, to see that everything runs
    minutes: float
    started: float = dataclasses.field(default_factory=time.monotonic)
    rows: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def left(self) -> float:
        """Seconds until the time is over."""
        return 60 * self.minutes - (time.monotonic() - self.started)

    def add(self, section: str, **values: Any) -> None:
        """One row of results; a value named ``wrong`` must be 0."""
        self.rows.setdefault(section, []).append(values)
        shown = "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        print(f"[{time.monotonic() - self.started:4.0f} s] {section}: {shown}", flush=True)

    def failures(self) -> list[tuple[str, dict[str, Any]]]:
        """Rows with an error, with something wrong, or with a figure that is no number."""
        return [(name, row) for name, rows in self.rows.items() for row in rows if _failed(row)]

    def seconds(self, call: Callable[[], object], warm: int = 3, repeat: int = 5, most: float = 4.0) -> float:
        """Median time of a call, the device idle before and after each."""
        for _ in range(1 if self.tiny else warm):
            call()
        end = time.perf_counter() + (0.1 if self.tiny else most)
        times = [seconds(call, self.device)]
        while len(times) < repeat and time.perf_counter() < end:
            times.append(seconds(call, self.device))
        return statistics.median(times)

    def kernels(self, call: Callable[[], object]) -> dict[str, Any]:
        """Kernels and copies of one call, and the time for which the GPU is busy with them, by torch's profiler."""
        if self.device.type != "cuda":
            return {}
        from torch.profiler import ProfilerActivity, profile

        call()
        synchronize(self.device)
        try:
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                call()
                synchronize(self.device)
        except (RuntimeError, AssertionError) as error:  # some machines forbid it
            return {"profiler": str(error)[:80]}
        events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        return {"kernels": len(events), "busy_ms": sum(event.device_time_total for event in events) / 1e3}

    def world(self, *overrides: str, precision: Precision = "auto", device: torch.device | None = None) -> WorldModel:
        """An untrained world model whose distributions are far from flat; the same weights on every device."""
        device = device or self.device
        config = compose_config([*(SMALLER if self.tiny else ()), *overrides])
        torch.manual_seed(0)
        tokenizer = require_codes(build_tokenizer(config, WORLD))
        prior = build_prior(config, WORLD, tokenizer)
        assert isinstance(prior, Prior)
        with torch.no_grad():
            for parameter in prior.head.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        world = WorldModel(WORLD, tokenizer.to(device), prior.to(device))
        for module in (world.tokenizer, world.prior):
            module.requires_grad_(False)
        dtype = resolve_precision(precision, device)
        world.tokenizer.decode_in(dtype)
        cast(world.prior.trunk, dtype)
        return world


def _failed(row: dict[str, Any]) -> bool:
    numbers = [value for value in row.values() if isinstance(value, float)]
    return "error" in row or row.get("wrong", 0) > 0 or not all(map(math.isfinite, numbers))


def smooth_frames(count: int, seed: int = 0) -> np.ndarray:
    """Smooth frames in which something moves, (count, 3, 64, 64) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 3, 64), np.linspace(0, 3, 64), indexing="ij")
    base = np.sin(y * rng.uniform(1, 4) + rng.uniform(0, 6)) + np.sin(x * rng.uniform(1, 4) + rng.uniform(0, 6))
    moving = np.sin(3 * x + 0.3 * np.arange(count)[:, None, None, None] + np.arange(3)[None, :, None, None])
    return (127 + 60 * base + 60 * moving).clip(0, 255).astype(np.uint8)
