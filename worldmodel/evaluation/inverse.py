"""Whether dreams follow their actions: a classifier, trained on real pairs of consecutive frames only, predicts the
action between dreamt frames; its accuracy is compared with that on real frames."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import RunError
from worldmodel.evaluation.metrics import ratio_of_means
from worldmodel.evaluation.openloop import Progress, reconstruct, silent
from worldmodel.nn.modules import native_bfloat16, to_channels_last
from worldmodel.training.checkpoint import check_fit, load_tensors, save_tensors
from worldmodel.types import Episode, to_float
from worldmodel.world import WorldModel

UNCHANGED = 1.0  # mean absolute difference in intensity values below which a pair counts as unchanged


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Consecutive frames and the action between them."""

    before: Tensor  # (n, C, *size) uint8
    after: Tensor  # (n, C, *size) uint8
    actions: Tensor  # (n,) int64


@dataclasses.dataclass(frozen=True)
class Budget:
    """How the classifier is trained: about half a minute on two cores at 64×64."""

    pairs: int = 12000  # drawn from training episodes, every action equally often
    steps: int = 300
    batch: int = 128
    rate: float = 2e-3  # peak of the learning rate, one cycle


def balanced_pairs(episodes: Sequence[Episode], actions: int, count: int, generator: np.random.Generator) -> Pairs:
    """About ``count`` pairs, balanced over actions and, for each action, over the previous action.

    Dreams have independent random actions, so the previous action, whose motion continues for some steps, is balanced
    as well. Pairs are drawn without replacement if there are enough; the first step of an episode is left out.

    Raises ``ValueError`` when no episode has a second step.
    """
    frames = [np.arange(2, len(episode.frames)) for episode in episodes]  # with two actions before them
    places = np.concatenate([np.stack([np.full(len(t), i), t], 1) for i, t in enumerate(frames)])
    led_by = np.concatenate([episode.actions[t] for episode, t in zip(episodes, frames, strict=True)])
    before = np.concatenate([episode.actions[t - 1] for episode, t in zip(episodes, frames, strict=True)])
    groups = [[np.flatnonzero((led_by == a) & (before == b)) for b in range(actions)] for a in range(actions)]
    present = [group for group in ([rows for rows in every if len(rows)] for every in groups) if group]
    if not present:
        raise ValueError("no step to draw pairs from")
    chosen: list[np.ndarray] = []
    for group in present:
        each = max(1, count // (len(present) * len(group)))
        chosen.extend(generator.choice(rows, each, replace=len(rows) < each) for rows in group)
    rows = generator.permutation(np.concatenate(chosen))
    first = np.stack([episodes[i].frames[t - 1] for i, t in places[rows]])
    second = np.stack([episodes[i].frames[t] for i, t in places[rows]])
    return Pairs(*map(torch.from_numpy, (first, second, led_by[rows].astype(np.int64))))


class InverseDynamics(nn.Module):
    """Two frames and their difference → logits of the action between them."""

    def __init__(self, channels: int, actions: int, width: int = 32):
        super().__init__()

        def block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(
            *block(3 * channels, width, 5, 2),
            *block(width, 2 * width, 3, 2),
            *block(2 * width, 4 * width, 3, 2),
            *block(4 * width, 4 * width, 3, 1),
            nn.AdaptiveAvgPool2d(4),  # keeps the location of the motion
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(16 * 4 * width, actions),
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """(B, C, H, W) uint8 twice → (B, A) float32."""
        first, second = to_float(before), to_float(after)
        joined = torch.cat([first, second, second - first], 1)
        return self.body(joined.contiguous(memory_format=torch.channels_last)).float()


def train_classifier(
    pairs: Pairs, actions: int, budget: Budget, device: torch.device, seed: int, progress: Progress, path: Path | None
) -> InverseDynamics:
    """Fit on the pairs; the seed decides weights, dropout and order of the batches.

    With a ``path``, the classifier is saved there, and loaded instead if it was trained on the same pairs in the same
    way.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = InverseDynamics(pairs.before.shape[1], actions).to(device)
        if path is None:
            _fit(model, pairs, budget, device, progress)
            return model.eval()
        digest = hashlib.sha256()
        for part in (pairs.before, pairs.after, pairs.actions):
            digest.update(part.contiguous().numpy().tobytes())
        key = f"{digest.hexdigest()[:16]} {actions} {budget} {seed}"
        try:
            tensors, facts = load_tensors(path, "it is trained anew")
            check_fit(path, tensors, model.state_dict(), "it is trained anew")
        except RunError:  # none yet, or damaged, or of an older shape
            facts = {}
        if facts.get("key") == key:
            model.load_state_dict(tensors)
        else:
            _fit(model, pairs, budget, device, progress)
            save_tensors(path, model.state_dict(), {"key": key})
    return model.eval()


def _fit(model: InverseDynamics, pairs: Pairs, budget: Budget, device: torch.device, progress: Progress) -> None:
    """Train with AdamW and a one-cycle rate."""
    to_channels_last(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=budget.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, budget.rate, total_steps=budget.steps)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(budget.steps):
        if len(order) < budget.batch:
            order = torch.cat([order, torch.randperm(len(pairs.actions))])
        rows, order = order[: budget.batch], order[budget.batch :]
        with torch.autocast(device.type, torch.bfloat16, enabled=native_bfloat16(device)):
            logits = model(pairs.before[rows].to(device), pairs.after[rows].to(device))
        loss = F.cross_entropy(logits, pairs.actions[rows].to(device), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("inverse dynamics", step + 1, budget.steps)


def balanced_actions(starts: int, steps: int, present: Sequence[int], generator: np.random.Generator) -> Tensor:
    """(starts, steps) int64: random actions, all of ``present`` equally frequent (±1)."""
    deck = np.resize(np.array(present, dtype=np.int64), starts * steps)
    return torch.from_numpy(generator.permutation(deck).reshape(starts, steps))


def dream_pairs(
    world: WorldModel,
    seen: Tensor,
    seen_actions: Tensor,
    actions: Tensor,
    *,
    temperature: float,
    seed: int = 0,
    batch: int = 64,
    progress: Progress = silent,
) -> Pairs:
    """Pairs of a dream under ``actions`` (S, H), flattened start by start.

    The first pair starts at the reconstruction of the last seen frame, so that both of its frames are decoded.
    ``seen`` (S, T0, C, *size) uint8; ``seen_actions`` (S, T0).
    """
    generator = torch.Generator(world.device).manual_seed(seed)
    before, after = [], []
    for start in range(0, len(seen), batch):
        rows = slice(start, start + batch)
        dream = world.imagine(
            seen[rows], actions[rows], seen_actions=seen_actions[rows], temperature=temperature, generator=generator
        )
        chain = torch.cat([reconstruct(world, seen[rows, -1:]), dream.frames.cpu()], 1)
        before.append(chain[:, :-1].flatten(0, 1))
        after.append(chain[:, 1:].flatten(0, 1))
        progress("actions obeyed", min(start + batch, len(seen)), len(seen))
    return Pairs(torch.cat(before), torch.cat(after), actions.flatten())


@dataclasses.dataclass(frozen=True)
class Reading:
    """Predictions of the classifier for pairs."""

    correct: np.ndarray  # (n,) float64, 0 or 1
    confusion: np.ndarray  # (A, A) int64, rows: the true action, columns: the predicted action
    unchanged: np.ndarray  # (A,) share of the pairs of each action that are unchanged

    def to_json(self) -> dict[str, Any]:
        hits = zip(self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
        return {
            "accuracy": float(self.correct.mean()),
            "accuracy_by_action": [hit / n if n else None for hit, n in hits],  # None without pairs
            "pairs": len(self.correct),
            "confusion": self.confusion.tolist(),
            "unchanged": self.unchanged.tolist(),
        }


@torch.inference_mode()
def read(model: InverseDynamics, pairs: Pairs, actions: int) -> Reading:
    """Predict the action of every pair."""
    device = next(model.parameters()).device
    chunks = zip(pairs.before.split(256), pairs.after.split(256), strict=True)
    predicted = torch.cat([model(a.to(device), b.to(device)).argmax(-1).cpu() for a, b in chunks])
    confusion = torch.bincount(pairs.actions * actions + predicted, minlength=actions**2).reshape(actions, actions)
    unchanged = (pairs.after.float() - pairs.before.float()).abs().flatten(1).mean(1) < UNCHANGED
    counts = torch.bincount(pairs.actions, minlength=actions).clamp(min=1)
    shares = torch.bincount(pairs.actions, weights=unchanged.double(), minlength=actions) / counts
    return Reading((predicted == pairs.actions).double().numpy(), confusion.numpy(), shares.numpy())


def obeyed(dreamt: Reading, real: Reading, steps: int, seed: int = 0) -> dict[str, Any]:
    """The accuracy on dreamt pairs over that on real pairs; starts and real pairs are resampled independently."""
    by_start = dreamt.correct.reshape(-1, steps)
    ratio = ratio_of_means(by_start, real.correct, paired=False, seed=seed)
    return {**dreamt.to_json(), "accuracy_by_step": by_start.mean(0).tolist(), "ratio_to_real": ratio.to_json()}
