"""How fast does it imagine? Frames, their parts, the dream environment, and decisions of planners."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.bench import WORLD, Bench, smooth_frames
from worldmodel.agents.mcts import MCTSAgent
from worldmodel.agents.mpc import MPCAgent
from worldmodel.agents.planner import PlanningModel
from worldmodel.envs.dreams import DreamBatch
from worldmodel.heads import Ancestral, make_sampler
from worldmodel.heads.noise import counter_noise
from worldmodel.nn.graphs import GRAPHS


def imagination(bench: Bench) -> None:
    """Frames a second by batch; untrained weights, so that predictive sampling is slower than with trained ones."""
    world = bench.world()
    steps = 2 if bench.tiny else 10
    for batch in (1, 4) if bench.tiny else (1, 64, 256, 1024, 4096):
        state = world.prior.begin(batch)
        actions = torch.zeros(batch, dtype=torch.int64, device=bench.device)
        for temperature in (1.0, 0.0) if batch in (4, 64) else (1.0,):
            sampler, generator = make_sampler("auto", temperature), torch.Generator(bench.device)

            def dream(count: int = steps) -> None:
                now = state  # noqa: B023
                for _ in range(count):
                    _, now = world.step(now, actions, sampler, generator)  # noqa: B023

            spent = bench.seconds(dream, 2, 5, 3.0) / steps
            counted = bench.kernels(lambda: dream(1)) if batch in (1, 1024) else {}
            rate = {"ms_a_frame": 1e3 * spent, "frames_a_second": batch / spent}
            bench.add("imagination", batch=batch, temperature=temperature, **rate, **counted)
        decoding = bench.seconds(lambda: world.tokenizer.decode(state.previous.clamp(min=0)))  # noqa: B023
        bench.add("imagination", batch=batch, decoding_ms=1e3 * decoding)


@torch.no_grad()
def parts_of_a_frame(bench: Bench) -> None:
    """The trunk, both kinds of noise, recording a graph, replaying it, and one near tie."""
    world = bench.world()
    head = world.prior.head
    for batch in (4,) if bench.tiny else (1, 64, 1024):
        state, actions = world.prior.begin(batch), torch.zeros(batch, dtype=torch.int64, device=bench.device)
        contexts = world.prior.trunk.step(state.trunk, state.previous, actions)[0].float()
        sampler, keys = Ancestral(), torch.arange(batch, device=bench.device)
        shape = (batch, world.prior.positions, len(head.vectors))
        noise = sampler.noise(shape, contexts, keys)
        codes, _, _ = sampler.run(head, contexts, noise)
        tie = torch.zeros_like(codes, dtype=torch.bool)
        tie[0, 0] = True

        def record() -> None:
            GRAPHS.known.clear()
            for _ in range(2):  # a call is recorded when it occurs for the second time
                sampler.run(head, contexts, noise)  # noqa: B023

        parts = {
            "trunk": lambda: world.prior.trunk.step(state.trunk, state.previous, actions),  # noqa: B023
            "noise_of_a_generator": lambda: sampler.noise(shape, contexts, torch.Generator(bench.device)),  # noqa: B023
            "noise_from_counters": lambda: counter_noise(keys, shape),  # noqa: B023
            "recording": record,
            "head": lambda: sampler.run(head, contexts, noise),  # noqa: B023
            "near_tie": lambda: sampler.settle(head, contexts, noise, codes, tie),  # noqa: B023
        }
        times = {f"{name}_ms": 1e3 * bench.seconds(call, 1, 3) for name, call in parts.items()}
        bench.add("parts_of_a_frame", batch=batch, **times)


class Starts:
    """Dreams start from black frames."""

    def __init__(self, context: int):
        self.context = context

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        return 0, 0

    def read(self, starts: Any) -> tuple[Tensor, Tensor]:
        shape = len(starts), self.context
        return torch.zeros(*shape, *WORLD.frame_shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.int64)


def dream_environment(bench: Bench) -> None:
    """Steps a second of all rows together; with some rows resting, as after the end of a dream, and without."""
    world = bench.world()
    starts: Any = Starts(max(1, world.prior.context))
    for batch in (4,) if bench.tiny else (64, 1024):
        for kind, resting in (("codes", 0.0), ("codes", 0.04), ("pixels", 0.0)):
            dreams = DreamBatch(world, starts, batch, 50, make_sampler(), None)
            rngs = [np.random.default_rng(n) for n in range(batch)]
            dreams.begin(np.arange(batch), rngs)
            chance = np.random.default_rng(0)

            def step() -> None:
                rows = np.flatnonzero(chance.random(batch) >= resting)  # noqa: B023
                dreams.step(rows, np.zeros(len(rows), np.int64), [rngs[row] for row in rows])  # noqa: B023
                dreams.observe(kind)  # noqa: B023

            spent = bench.seconds(step, 3, 10)
            facts = {"batch": batch, "observations": kind, "resting": resting}
            bench.add("dream_environment", **facts, ms_a_step=1e3 * spent, steps_a_second=batch / spent)


def planning(bench: Bench) -> None:
    """Seconds a decision, with the default settings of the planners."""
    world, frame = bench.world(), smooth_frames(1)[0]
    few: dict[str, Any] = {"candidates": 8, "horizon": 2, "elites": 4, "iterations": 2} if bench.tiny else {}
    small: dict[str, Any] = {"simulations": 8, "parallel": 4, "rollout": 2} if bench.tiny else {}
    for agent in (MPCAgent("", **few), MCTSAgent("", **small)):
        agent.use_model(PlanningModel(world, None, None, 1, 1.0))
        agent.begin(WORLD.action_names, np.random.default_rng(0))
        spent = bench.seconds(lambda: agent.act(frame), 2, 5, 8.0)  # noqa: B023
        bench.add("planning", agent=type(agent).__name__, seconds_a_decision=spent)
