"""Every agent and the dream environment on a make-believe GPU, by the one setting ``device``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import Gpu
from hydra.utils import instantiate
from test_agents_contract import NAMES, SMALL, episode
from test_agents_contract import run as run  # a fixture
from tiny import SPEC, frames, random_segment, tiny_prior, tiny_tokenizer
from torch import Tensor

from worldmodel.agents.actor import load_actor
from worldmodel.agents.choice import LEARNER_SETTINGS
from worldmodel.agents.imagination import ImaginationObjective
from worldmodel.config.cli import choices, compose_config
from worldmodel.envs.dreams import DreamBatch
from worldmodel.heads import make_sampler
from worldmodel.world import WorldModel


@pytest.mark.parametrize("name", NAMES)
def test_one_setting_moves_every_agent(name: str, run: Path) -> None:
    def actions(device: str) -> list[int]:
        node = compose_config([f"agent={name}", *SMALL.get(name, ()), f"device={device}"]).agent
        if "run" in node.keys():  # noqa: SIM118 (a value that is missing is not "in" OmegaConf's nodes)
            node.run = str(run)
        settings = {key: value for key, value in node.items() if key not in LEARNER_SETTINGS}
        assert settings.get("device", device) == device
        return episode(instantiate(settings), 0, 3)

    wanted = actions("cpu")
    with Gpu() as gpu:
        assert actions("cuda") == wanted
        assert bool(gpu.launches) == ("run" in compose_config([f"agent={name}"]).agent.keys())  # noqa: SIM118


def test_every_agent_and_explorer_that_computes_has_the_setting() -> None:
    for group, kind in (("agent", "agent"), ("explorer", "explorer")):
        for name in choices()[group]:
            node = compose_config([f"{group}={name}", "device=cuda"])[kind]
            if "run" in node.keys() or "folder" in node.keys():  # noqa: SIM118
                assert node.device == "cuda", f"{group}={name}"


def test_an_actor_learns_in_the_dream(run: Path) -> None:
    segment = random_segment(3, 6)
    with Gpu() as gpu:
        world = WorldModel(SPEC, tiny_tokenizer().to("cuda"), tiny_prior().to("cuda"))
        objective = ImaginationObjective(world, load_actor(run, "cuda")[1].requires_grad_(True), horizon=2).to("cuda")
        losses = objective.train()(segment.to("cuda"), torch.Generator("cuda").manual_seed(0))
        sum(losses.terms.values(), torch.zeros((), device="cuda")).backward()
        assert gpu.launches and all(p.grad is not None for p in objective.agent.parameters())


class Starts:
    """Dreams start from the same frames."""

    context = 2

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        return int(rng.integers(9)), 0

    def read(self, starts: Any) -> tuple[Tensor, Tensor]:
        seen = frames(2)[None].expand(len(starts), -1, -1, -1, -1).clone()
        return seen, torch.zeros(len(starts), 2, dtype=torch.int64)


def dreams(device: str, batch: int) -> tuple[DreamBatch, list[np.random.Generator]]:
    world = WorldModel(SPEC, tiny_tokenizer().to(device), tiny_prior().to(device))
    starts: Any = Starts()
    return DreamBatch(world, starts, batch, 50, make_sampler(), None), [np.random.default_rng(n) for n in range(batch)]


def dreamt(device: str, batch: int) -> list[np.ndarray]:
    """The codes of four steps; one row rests in the second."""
    batched, rngs = dreams(device, batch)
    every, values = np.arange(batch), []
    batched.begin(every, rngs)
    for step in range(4):
        rows = every[:-1] if step == 1 and batch > 1 else every
        batched.step(rows, np.full(len(rows), step % 3), [rngs[row] for row in rows])
        values.append(batched.observe("codes")[0])
    return values


def test_the_dream_environment_dreams_as_on_a_cpu_in_any_batch() -> None:
    wanted = dreamt("cpu", 3)
    assert all(np.array_equal(one, two) for one, two in zip(wanted, dreamt("cpu", 1), strict=True))
    assert all(np.array_equal(one, two) for one, two in zip(wanted, dreamt("cpu", 20), strict=True))
    with Gpu():
        assert all(np.array_equal(one, two) for one, two in zip(wanted, dreamt("cuda", 3), strict=True))
        assert all(np.array_equal(one, two) for one, two in zip(wanted, dreamt("cuda", 5), strict=True))


def test_a_step_of_the_dream_environment_uploads_keys_and_actions_alone() -> None:
    with Gpu() as gpu:
        batched, rngs = dreams("cuda", 4)
        batched.begin(np.arange(4), rngs)
        for _ in range(3):
            gpu.forget()
            batched.step(np.arange(4), np.zeros(4, np.int64), rngs)
        assert sum(gpu.uploads.values()) == 1 and sum(gpu.waits.values()) == 2, gpu.report()
