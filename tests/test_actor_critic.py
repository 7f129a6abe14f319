"""An actor that learns in the dream: targets, what an update counts, exact worlds, and the loop to optimality."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import corridor
import numpy as np
import pytest
import torch
from exact_world import clock, exact_world
from exact_world import corridor as hall
from tiny import tiny_tokenizer
from torch import Tensor

from worldmodel import collect
from worldmodel.agents import evaluate, train
from worldmodel.agents.actor import build_actor
from worldmodel.agents.actor_critic import ActorCritic, FrameReader, lambda_returns, reach
from worldmodel.agents.imagination import ImaginationObjective, imagine, log_probability
from worldmodel.agents.loop import plan_rounds
from worldmodel.config.cli import compose_config
from worldmodel.data.store import EpisodeStore
from worldmodel.errors import ConfigError
from worldmodel.heads import make_sampler
from worldmodel.runs.folder import load_config
from worldmodel.runs.models import build_prior, build_tokenizer
from worldmodel.tokenizers import require_codes
from worldmodel.types import NO_ACTION, Segment, Spec
from worldmodel.world import WorldModel

Say = Callable[..., str]


def actor_for(actions: int, width: int = 32) -> ActorCritic:
    torch.manual_seed(0)
    tokenizer = exact_world(hall, actions).tokenizer
    return ActorCritic(tokenizer, actions, history=2, width=width, layers=1)


def seen_at(states: Tensor, terminated: Tensor | None = None) -> Segment:
    """Segments of one frame each: the places (B,)."""
    batch = len(states)
    no = torch.zeros((batch, 1), dtype=torch.bool)
    return Segment(
        actions=torch.full((batch, 1), NO_ACTION),
        rewards=torch.zeros((batch, 1)),
        terminated=no if terminated is None else terminated[:, None],
        truncated=no,
        valid=~no,
        codes=states[:, None, None],
    )


def test_an_actor_may_read_decoded_frames() -> None:
    """What was not seen yet is blank, what is seen is what the tokenizer shows, and this is no part of the actor."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    actor = ActorCritic(tokenizer, 3, history=2, width=16, layers=1, reader=FrameReader)
    read: list[Tensor] = []
    actor.policy.reader.convs.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    grids = torch.randint(tokenizer.num_codes, (4, *tokenizer.grid), generator=torch.Generator().manual_seed(0))
    output = actor(actor.begin(4).appended(grids, torch.zeros(4, dtype=torch.int64)))
    assert output.logits.shape == (4, 3) and torch.allclose(actor.expected(output.value), torch.zeros(4), atol=1e-4)
    assert read[0][:, :3].eq(0).all() and torch.allclose(read[0][:, 3:], tokenizer.expected_frames(grids), atol=1e-5)
    assert not {id(p) for p in tokenizer.parameters()} & {id(p) for p in actor.parameters()}


def test_lambda_returns_by_their_definition() -> None:
    torch.manual_seed(0)
    rewards, values, discounts = torch.randn(3, 4), torch.randn(3, 5), torch.rand(3, 4)
    for mix in (0.0, 0.5, 1.0):
        found = lambda_returns(rewards, values, discounts, mix)
        for row in range(3):
            # The sum over n of (1 − λ) λ^(n − 1) n-step returns, the last with all that is left.
            for t in range(4):
                expected, kept = 0.0, 1.0
                for n in range(1, 5 - t):
                    steps = [float(discounts[row, t : t + k].prod() * rewards[row, t + k]) for k in range(n)]
                    whole = sum(steps) + float(discounts[row, t : t + n].prod() * values[row, t + n])
                    share = kept if n == 4 - t else kept * (1 - mix)
                    expected, kept = expected + share * whole, kept * mix
                assert float(found[row, t]) == pytest.approx(expected, abs=1e-5)


def test_states_count_as_probably_as_they_are_reached() -> None:
    discounts = torch.tensor([[0.9, 0.0, 0.9]])
    assert reach(discounts)[0].tolist() == pytest.approx([1.0, 0.9, 0.0])


def test_a_dream_of_an_actor_is_that_of_the_world() -> None:
    world, actor = exact_world(clock(0.25), 2), actor_for(2)
    objective = ImaginationObjective(world, actor, horizon=3)
    state, seen = objective.start_states(seen_at(torch.tensor([3, 10])))
    dream = imagine(world, actor, state, seen, 3, make_sampler("auto", 1.0, None), torch.Generator().manual_seed(0))
    assert dream.rewards.tolist() == [[4, 5, 6], [11, 12, 13]]
    assert dream.continues.tolist() == [[0.75] * 3] * 2
    assert dream.grids[..., 0].tolist() == [[-1, 3, 4, 5, 6], [-1, 10, 11, 12, 13]]
    assert dream.actions[:, :2].eq(NO_ACTION).all() and dream.actions[:, 2:].ge(0).all()
    windows = dream.windows(2)
    assert windows.grids[:4, :, 0].tolist() == [[-1, 3], [3, 4], [4, 5], [5, 6]]
    assert windows.actions[3].tolist() == dream.actions[0, 3:].tolist()


def test_nothing_is_learnt_behind_an_end() -> None:
    """Whatever is dreamt from a state that is over, gradients are those of the other alone."""

    def gradients(states: list[int]) -> list[Tensor]:
        actor = actor_for(2)
        for tower in (actor.policy, actor.critic):
            torch.nn.init.normal_(tower.out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        objective = ImaginationObjective(exact_world(clock(0.1), 2), actor, horizon=3)
        losses = objective(seen_at(torch.tensor(states), torch.tensor([False, True])), torch.Generator().manual_seed(0))
        sum(losses.terms.values()).backward()  # type: ignore[union-attr]
        return [parameter.grad for parameter in actor.parameters() if parameter.grad is not None]

    once, others, alive = gradients([4, 7]), gradients([4, 200]), gradients([9, 7])
    assert len(once) > 10 and all(torch.allclose(*pair, atol=1e-6) for pair in zip(once, others, strict=True))
    assert not all(torch.allclose(*pair, atol=1e-4) for pair in zip(once, alive, strict=True))
    objective = ImaginationObjective(exact_world(clock(0.1), 2), actor_for(2), horizon=3)
    losses = objective(seen_at(torch.tensor([7]), torch.tensor([True])), torch.Generator().manual_seed(0))
    assert all(term.item() == 0 for term in losses.terms.values())


def test_the_entropy_of_equal_actions_is_the_whole_of_it() -> None:
    objective = ImaginationObjective(exact_world(hall, 3), actor_for(3), horizon=2)
    losses = objective(seen_at(torch.tensor([1, 2])), torch.Generator().manual_seed(0))
    assert losses.terms["entropy"].item() == pytest.approx(0, abs=1e-6)


def test_a_dream_is_learnt_from_as_often_as_reuse_states() -> None:
    objective = ImaginationObjective(exact_world(hall, 3), actor_for(3), horizon=3, reuse=2)
    generator = torch.Generator().manual_seed(0)
    batch = seen_at(torch.arange(6))
    first = objective(batch, generator)
    drawn = generator.get_state()
    second = objective(batch, generator)
    assert torch.equal(generator.get_state(), drawn)  # nothing was dreamt
    # The policy is the one that dreamt: the gradient is that of REINFORCE, at both times.
    weight = objective.agent.policy.out.weight
    grads = [torch.autograd.grad(losses.terms["policy"], weight) for losses in (first, second)]
    assert torch.equal(*[grad for (grad,) in grads]) and grads[0][0].abs().sum() > 0
    objective(batch, generator)
    assert not torch.equal(generator.get_state(), drawn)  # the third begins anew


def test_a_policy_that_has_gone_far_is_not_drawn_farther() -> None:
    objective = ImaginationObjective(exact_world(hall, 3), actor_for(3), horizon=3, reuse=2)
    generator = torch.Generator().manual_seed(0)
    objective(seen_at(torch.arange(6)), generator)
    with torch.no_grad():  # action 2 alone is taken now, far more probably than when it was dreamt
        objective.agent.policy.out.bias.copy_(torch.tensor([-5.0, -5.0, 5.0]))
    policy_batch = objective._batch
    assert policy_batch is not None
    losses = objective(seen_at(torch.arange(6)), generator)
    (grad,) = torch.autograd.grad(losses.terms["policy"], objective.agent.policy.out.bias)
    # Where it was good to do what is done more now, or bad to do what is done less, nothing pulls any more.
    pulled = torch.where(policy_batch.actions == 2, policy_batch.advantages < 0, policy_batch.advantages > 0)
    assert pulled.any() and not pulled.all()
    output = objective.agent(policy_batch.recent).logits.unflatten(0, (-1, 4))[:, :-1]
    now = log_probability(output, policy_batch.actions)
    loss = -(policy_batch.weights * (now - policy_batch.log_policy).exp() * policy_batch.advantages * pulled).sum()
    assert torch.allclose(grad, torch.autograd.grad(loss, objective.agent.policy.out.bias)[0], atol=1e-6)
    good = policy_batch.advantages * torch.where(policy_batch.actions == 2, 1.2, 0.8)
    ratio = torch.where(policy_batch.actions == 2, 3.0, 0.0) * policy_batch.advantages
    expected = -(policy_batch.weights * torch.minimum(good, ratio)).sum()
    assert losses.terms["policy"].item() == pytest.approx(expected.item(), abs=1e-3)


def test_an_actor_finds_the_far_reward_of_an_exact_world() -> None:
    """A step to the left brings 0.1 at once; 5 wait at the right end, up to seven steps away."""
    world, actor = exact_world(hall, 3), actor_for(3, 64)
    objective = ImaginationObjective(world, actor, horizon=10, discount=0.97, reuse=1)
    optimiser = torch.optim.Adam(actor.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = seen_at(torch.randint(7, (32,), generator=generator))
        losses = objective(batch, generator)
        weights = {"entropy": 0.01}
        optimiser.zero_grad()
        sum(weights.get(name, 1.0) * term for name, term in losses.terms.items()).backward()  # type: ignore[union-attr]
        optimiser.step()
    places = torch.arange(7)
    output = actor(objective.start_states(seen_at(places))[1])
    assert output.logits.argmax(-1).tolist() == [2] * 7
    exact = 5 * 0.97 ** (6 - places)
    assert torch.allclose(actor.expected(output.value), exact, atol=0.6), actor.expected(output.value) - exact


def test_steps_are_shared_among_rounds() -> None:
    assert plan_rounds("walk", 1000, 3) == [("walk-round1", 333), ("walk-round2", 666), ("walk", 1000)]
    with pytest.raises(ConfigError, match=r"rounds is 5; choose from 1 to the number of steps, 4"):
        plan_rounds("walk", 4, 5)


@pytest.mark.parametrize("name", ["agent-basic", "agent-health", "agent-minigrid"])
def test_experiments_of_agents_make_what_they_name(name: str) -> None:
    """What they train fits together, and the two towers of the actor-critic are apart."""
    config = compose_config([f"experiment={name}"])
    spec = Spec(name, (3, 64, 64), ("noop", "left", "right", "attack"), 10.0)
    tokenizer = require_codes(build_tokenizer(config, spec))
    world = WorldModel(spec, tokenizer, build_prior(config, spec, tokenizer))
    actor = build_actor(config.agent.learner.network, tokenizer, 4)
    settings = {**config.agent.learner.dream, "horizon": 2}
    objective = ImaginationObjective(world, actor, **settings)
    codes = torch.randint(tokenizer.num_codes, (2, 1, *tokenizer.grid), generator=torch.Generator().manual_seed(0))
    losses = objective(dataclasses.replace(seen_at(torch.zeros(2)), codes=codes), torch.Generator().manual_seed(0))
    losses.terms["value"].backward()
    assert all(parameter.grad is None for parameter in actor.policy.parameters())
    assert any(parameter.grad is not None for parameter in actor.critic.parameters())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.learner.dream.reuse=2.5"], "agent.learner.dream.reuse is 2.5; it must be a whole number"),
        (["agent.learner.dream.reuse=0"], "agent.learner.dream.reuse is 0; it must be at least 1"),
        (["agent.learner.dream.clip=a"], "agent.learner.dream.clip is 'a'; it must be a finite number"),
        (["agent.learner.max_repeat=0"], "agent.learner.max_repeat is 0; it must be at least 1"),
        (["+agent.learner.dream.speed=1"], "there is no agent.learner.dream.speed; choose world, agent, horizon"),
        (["steps=0"], "steps=0 trains an actor in the world model of an existing run: name it with run="),
        (["prior=pixelcnn"], "dreams need a tokenizer of codes and a prior that reads earlier frames; choose"),
        (["tokenizer=vqvae_8x8x10"], "makes 10 codes at each position, and ConvTrunk is for one; choose prior="),
        (["steps=0", "run=gone"], "there are no runs in runs"),
    ],
)
def test_what_cannot_be_learnt_is_reported_before_anything_is_made(
    say: Say, tmp_path: Path, words: list[str], message: str
) -> None:
    err = say(train, *corridor.CHOOSE, "agent=actor_critic", *words, code=2)
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


SMALL = (
    "prior=conv", "tokenizer.widths=[16,16]", "tokenizer.num_codes=32", "prior.trunk.width=32",
    "prior.trunk.blocks=1",
    "prior.head.width=32", "agent.learner.network.width=64", "agent.learner.network.reader.channels=16",
    "agent.learner.dream.horizon=8", "agent.learner.rounds=2", "explorer=uniform", "training.tokenizer.steps=150",
    "training.prior.steps=150", "training.agent.steps=160", "training.agent.learning_rate=2e-3",
    "training.tokenizer.batch=12", "training.prior.batch=12", "training.agent.batch=32",
)  # fmt: skip


def test_the_loop_learns_a_corridor_to_optimality(say: Say, tmp_path: Path) -> None:
    """Collect, learn the world, learn in the dream, twice; then every episode goes straight to where it pays."""
    words = (*corridor.CHOOSE, "agent=actor_critic", "run=walk", *SMALL)
    output = say(train, *words, "steps=600")
    assert "round 1 of 2: 300 steps" in output and "round 2 of 2: 600 steps" in output
    for name in ("walk-round1", "walk"):
        assert (tmp_path / "runs" / name / "agent.safetensors").is_file()
    assert (tmp_path / "runs" / "walk" / "returns.png").is_file()

    say(evaluate, *corridor.CHOOSE, "agent=actor_critic", "run=walk", "agent.greedy=true", "episodes=20",
        "--horizon", "8")  # fmt: skip
    found = json.loads((tmp_path / "runs/walk/agents/actor_critic-corridor-corridor-v0/metrics.json").read_text())
    lengths = [episode["length"] for episode in found["episodes"]]
    starts = {corridor.PLACES - 1 - length for length in lengths}
    assert starts == set(range(corridor.PLACES - 1))  # from every place, as many steps as it is away
    for episode in found["episodes"]:
        assert episode["return"] == pytest.approx(1.1 - 0.1 * episode["length"])

    again = say(train, *words, "steps=600")  # nothing is left to do
    assert "the agent is trained already" in again
    longer = [*words, "steps=600", "training.agent.steps=162"]
    err = say(train, *longer, "agent.learner.network.width=32", code=2)
    assert "the agent of walk-round1 has another network than agent.learner.network; choose its own, or remove" in err
    assert "going on at step 160" in say(train, *longer)
    assert load_config(tmp_path / "runs/walk").training.agent.steps == 162

    output = say(collect, *corridor.CHOOSE, "explorer=actor", "run=walk", "data=data/played",
               "explorer.random_action_probability=0", "--steps", "60")  # fmt: skip
    assert "recorded  60 steps" in output
    played = EpisodeStore.open(tmp_path / "data" / "played")
    assert float(np.concatenate([played.episode(number).actions[1:] for number in range(len(played))]).mean()) > 0.9

    names = "env.action_names=[west,east]"
    err = say(collect, *corridor.CHOOSE, names, "explorer=actor", "run=walk", "data=data/other", "--steps", "5", code=2)
    assert "was trained with the actions left, right, and this environment has west, east; choose another run=" in err

    frames = EpisodeStore.open(tmp_path / "data" / "walk").steps
    (tmp_path / "runs/walk-round1/agent.safetensors").unlink()
    shutil.rmtree(tmp_path / "runs/walk-round1/checkpoints")
    inside = say(train, *corridor.CHOOSE, *SMALL, "agent=actor_critic", "run=walk-round1", "steps=0",
                 "training.agent.steps=2")  # fmt: skip
    assert "training the actor in the dream of walk-round1" in inside
    assert (tmp_path / "runs/walk-round1/agent.safetensors").is_file()
    assert EpisodeStore.open(tmp_path / "data" / "walk").steps == frames  # no step was taken
    (tmp_path / "runs/walk-round1/prior.safetensors").unlink()
    err = say(train, *corridor.CHOOSE, "agent=actor_critic", "run=walk-round1", "steps=0", code=2)
    assert "walk-round1 has no trained world model; train it: python -m worldmodel.train run=walk-round1" in err
