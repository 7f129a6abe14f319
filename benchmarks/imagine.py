"""Speeds of a trained run: imagination, codec, near the figures of docs/experiments.md. Medians, samplers interleaved.

python benchmarks/imagine.py runs/my_way_home-1 [--batches 1 64] [--repeat 5] [--threads 2] [--precision fp32]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from worldmodel.priors import make_sampler
from worldmodel.rollout import WorldModel, decode, encode


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue drained on both sides."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def imagination(world: WorldModel, batch: int, repeat: int, frames: int = 8) -> dict[str, float]:
    """Frames/s of tokens alone per sampler, mean passes of the predictive one, frames/s with decoding."""
    device, shape = world.device, world.prior.grid
    generator = torch.Generator(device).manual_seed(0)
    actions = torch.randint(0, world.prior.actions, (frames + 4, batch), generator=generator, device=device)
    # Codes that the model itself finds likely: noise as a past would spoil the guess.
    state = world.prior.begin(batch)
    warm = make_sampler("auto")
    nothing = torch.zeros(batch, *shape, dtype=torch.int64, device=device)
    state = world.prior.observe(state, nothing, torch.full_like(actions[0], -1))
    for action in actions[:4]:
        _, state = world.step(state, action, warm, generator)
    times: dict[str, list[float]] = {"ancestral": [], "predictive": []}
    passes: list[float] = []
    dreamt: list[torch.Tensor] = []
    for _ in range(repeat + 1):
        for name, spent in times.items():
            sampler = make_sampler(name)

            def run(sampler=sampler, name=name) -> None:  # type: ignore[no-untyped-def]
                now = state
                for action in actions[4:]:
                    step, now = world.step(now, action, sampler, generator)
                    dreamt[:] = [step.codes]
                    if name == "predictive":
                        passes.append(float(step.passes))

            spent.append(seconds(run, device))
    rates = {name: batch * frames / statistics.median(spent[1:]) for name, spent in times.items()}
    decoding = statistics.median(seconds(lambda: decode(world.tokenizer, dreamt[0]), device) for _ in range(repeat))
    best = max(rates.values())
    with_decoding = 1 / (1 / best + decoding / batch)
    return {**rates, "passes": statistics.mean(passes), "best with decoding": with_decoding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world = WorldModel.load(args.run, args.device, args.precision)
    result: dict[str, object] = {
        f"imagine, batch {batch}, frames/s": {
            name: round(value, 1) for name, value in imagination(world, batch, args.repeat).items()
        }
        for batch in args.batches
    }
    frames = torch.randint(0, 256, (64, *world.spec.frame_shape), dtype=torch.uint8).to(world.device)
    encode(world.tokenizer, frames)
    spent = [seconds(lambda: encode(world.tokenizer, frames), world.device) for _ in range(args.repeat)]
    result["encode, batch 64, frames/s"] = round(64 / statistics.median(spent), 1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
