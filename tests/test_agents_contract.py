"""What every agent keeps to, whichever YAML names it: on a run with tiny, untrained weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from tiny import SHORT, SMALL_PRIOR, SMALL_TOKENIZER, SPEC, frames

from worldmodel import configs
from worldmodel.agents.actor import AGENT, build_actor, load_actor, save_network
from worldmodel.agents.actor_critic import DISCOUNT
from worldmodel.agents.base import Agent
from worldmodel.agents.choice import LEARNER_SETTINGS
from worldmodel.agents.mpc import MPCAgent
from worldmodel.agents.planner import Planner
from worldmodel.config.cli import compose_config
from worldmodel.errors import RunError
from worldmodel.runs.folder import PRIOR, TOKENIZER, new_run
from worldmodel.runs.models import build_prior, build_tokenizer
from worldmodel.tokenizers import require_codes
from worldmodel.training.checkpoint import save_tensors

ELSEWHERE = {"sb3_ppo"}  # plays by a zip of its library's: tests/test_sb3.py
NAMES = sorted({path.stem for path in (Path(configs.__file__).parent / "agent").glob("*.yaml")} - ELSEWHERE)
SMALL = {
    "mpc": ("agent.candidates=8", "agent.horizon=3", "agent.iterations=2", "agent.elites=2"),
    "mpc_quick": ("agent.candidates=8", "agent.horizon=3"),
    "mcts": ("agent.simulations=12", "agent.parallel=4"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As training leaves it: a world, and an actor that learnt in it."""
    small = [f"agent.learner.network.{value}" for value in ("width=16", "layers=1", "reader.channels=8")]
    runs = tmp_path_factory.mktemp("agents")
    config = compose_config(
        ["agent=actor_critic", *SMALL_TOKENIZER, *SMALL_PRIOR, "tokenizer.num_codes=16", "prior.trunk.blocks=1",
         *SHORT["conv_pose"], *small, f"data={runs / 'data'}", f"runs={runs}", "run=tiny"]
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = require_codes(build_tokenizer(config, SPEC))
    folder = new_run(config, SPEC)
    save_tensors(folder / TOKENIZER, tokenizer.state_dict())
    save_tensors(folder / PRIOR, build_prior(config, SPEC, tokenizer).state_dict())
    network = config.agent.learner.network
    save_network(folder, network, 0.9)
    save_tensors(folder / AGENT, build_actor(network, tokenizer, len(SPEC.action_names)).state_dict())
    assert (load_actor(folder)[1].num_actions, load_actor(folder)[1].discount) == (3, 0.9)
    return folder


def made(name: str, run: Path) -> Agent:
    """The agent of a YAML, as every command builds it."""
    node = compose_config([f"agent={name}", *SMALL.get(name, ())]).agent
    if "run" in node.keys():  # noqa: SIM118 (a value that is missing is not "in" OmegaConf's nodes)
        node.run = str(run)
    return instantiate({key: value for key, value in node.items() if key not in LEARNER_SETTINGS})


def episode(agent: Agent, seed: int, steps: int = 5) -> list[int]:
    agent.begin(SPEC.action_names, np.random.default_rng(seed))
    return [agent.act(frame) for frame in frames(steps).numpy()]


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_keeps_the_contract(name: str, run: Path) -> None:
    agent = made(name, run)
    twin = pickle.loads(pickle.dumps(agent))
    actions = episode(agent, 0)
    assert all(type(action) is int and 0 <= action < 3 for action in actions)
    torch.rand(3)
    assert episode(twin, 0) == actions  # in another process
    assert episode(agent, 0) == actions  # in another episode
    assert any(episode(agent, seed) != actions for seed in range(1, 4))  # chance comes from what begin is given


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_of_an_agent_begins_with_its_action(name: str, run: Path) -> None:
    agent = made(name, run)
    agent.begin(SPEC.action_names, np.random.default_rng(0))
    plans = 0
    for frame in frames(4).numpy():
        action, plan = agent.act(frame), agent.plan
        if plan is None:
            continue
        plans += 1
        length = len(plan)
        assert plan.actions[0] == action and plan.actions.shape == plan.rewards.shape == plan.ends.shape == (length,)
        assert plan.grids.shape == (length, 4, 4) and np.isfinite(plan.value)
        assert plan.frames.shape == (length, *SPEC.frame_shape) and plan.frames.dtype == np.uint8
    assert plans == (4 // agent.repeat if isinstance(agent, Planner) else 0)  # between them decisions are held


@pytest.mark.parametrize("name", [name for name in NAMES if name in SMALL])
def test_planners_plan_without_an_actor_too(name: str, run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in run.iterdir():
        if file.is_file() and not file.name.startswith("agent"):
            (alone / file.name).write_bytes(file.read_bytes())
    agent = made(name, alone)
    assert len(episode(agent, 0, 3)) == 3
    agent = made(name, tmp_path / "nowhere")
    with pytest.raises(RunError, match="there is no run at"):
        agent.begin(SPEC.action_names, np.random.default_rng(0))


def test_a_planner_counts_as_the_critic_does_that_it_trusts(run: Path) -> None:
    """γ is that of the run's critic, unless the settings say another or the critic is not asked."""
    for settings, wanted in (({}, 0.9), ({"discount": 0.5}, 0.5), ({"value": "none"}, DISCOUNT)):
        agent = MPCAgent(run, **settings)
        agent.begin(SPEC.action_names, np.random.default_rng(0))
        assert agent._model is not None and agent._model.discount == wanted
