"""What a planner knows of the episode that it plays, and how it imagines what its decisions come to."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from worldmodel.agents.actor_critic import ActorCritic, Seen
from worldmodel.agents.returns import DISCOUNT
from worldmodel.agents.run import AGENT, load_actor

from worldmodel.heads import make_sampler
from worldmodel.priors import PriorState, Step
from worldmodel.types import NO_ACTION
from worldmodel.world import Precision, WorldModel


class Belief(NamedTuple):
    """What is known of B episodes; :func:`~worldmodel.priors.select_rows` takes rows of it."""

    state: PriorState  # of the world model
    seen: Seen | tuple[()]  # of the actor; nothing without one

    @property
    def grids(self) -> Tensor:
        """(B, *grid) int64, the last that were seen or imagined."""
        return self.state.previous


class Leap(NamedTuple):
    """What B decisions come to."""

    rewards: Tensor  # (B,) float32, Σ γ^k P(no end before) r over the steps that the action is held for
    discounts: Tensor  # (B,) float32, γ^repeat P(no end): how much what follows counts
    steps: tuple[Step, ...]  # every imagined frame


class Judgement(NamedTuple):
    """What an actor and its critic say of B beliefs."""

    policy: Tensor  # (B, A) float32, probabilities of the actions
    value: Tensor  # (B,) float32, the return expected from here on


class Mind:
    """A world model that imagines, and the actor and critic that learnt in it, where there are any.

    Args:
        world: imagines. actor: has a policy and a value.
        discount: γ of a step of the environment; None: that of the critic, or 0.985.
        repeat: steps that every decision is held for.
        temperature: of the dream; 0 imagines what is expected, the same every time.
    """

    def __init__(
        self,
        world: WorldModel,
        actor: ActorCritic | None = None,
        discount: float | None = None,
        repeat: int = 1,
        temperature: float = 1.0,
    ):
        self.world, self.actor = world, actor
        self.actions = len(world.spec.action_names)
        learnt = None if actor is None else actor.discount
        self.discount = next(known for known in (discount, learnt, DISCOUNT) if known is not None)
        self.repeat = repeat
        self.sampler = make_sampler("auto", temperature)

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def stochastic(self) -> bool:
        """Whether the same actions may be imagined to lead elsewhere the next time."""
        return self.sampler.temperature > 0

    def begin(self) -> Belief:
        """Before anything was seen, a batch of one."""
        return Belief(self.world.prior.begin(1), () if self.actor is None else self.actor.begin(1))

    @torch.no_grad()
    def see(self, belief: Belief, frame: np.ndarray, action: int = NO_ACTION) -> Belief:
        """Take in a real frame, (C, *size) uint8, and the action that led to it."""
        grids = self.world.tokenizer.encode(torch.from_numpy(frame)[None].to(self.device))
        led_by = torch.tensor([action], device=self.device)
        return Belief(
            self.world.prior.observe(belief.state, grids, led_by), belief.seen and belief.seen.then(grids, led_by)
        )

    @torch.no_grad()
    def imagine(self, belief: Belief, actions: Tensor, generator: torch.Generator | None = None) -> tuple[Leap, Belief]:
        """What the actions (B,) int64 lead to, each held for ``repeat`` steps."""
        rewards = torch.zeros(len(actions), device=self.device)
        counts = torch.ones_like(rewards)  # how much a reward counts: discounted, and if there was no end before
        steps = []
        for _ in range(self.repeat):
            step, state = self.world.step(belief.state, actions, self.sampler, generator)
            belief = Belief(state, belief.seen and belief.seen.then(step.codes, actions))
            rewards = rewards + counts * step.rewards
            counts = counts * self.discount * (1 - step.ends)
            steps.append(step)
        return Leap(rewards, counts, tuple(steps)), belief

    @torch.no_grad()
    def judge(self, belief: Belief) -> Judgement | None:
        """What the actor and its critic say; None where there are none."""
        if self.actor is None:
            return None
        assert belief.seen, "a belief without a past of the actor's comes from a mind without an actor"
        judged = self.actor(belief.seen)
        return Judgement(judged.logits.softmax(-1), self.actor.expected(judged.value))

    def draw(self, grids: np.ndarray) -> np.ndarray:
        """Grids (M, *grid) int64 → frames (M, C, *size) uint8."""
        return self.world.tokenizer.decode(torch.from_numpy(grids).to(self.device)).cpu().numpy()


def load_mind(
    run: str | Path,
    value: str,
    device: str,
    precision: Precision,
    discount: float | None,
    repeat: int,
    temperature: float,
) -> Mind:
    """The mind of a run's folder. ``value``: ``auto``, with the run's actor where it has one, or ``none``.

    Raises what :meth:`WorldModel.load` raises.
    """
    folder = Path(run)
    world = WorldModel.load(folder, device, precision)
    trained = value == "auto" and (folder / AGENT).is_file()
    actor = load_actor(folder, world.device)[1] if trained else None
    return Mind(world, actor, discount, repeat, temperature)
