"""A memory of past grids, which finds them again by the pose of the camera.

The pose follows from the actions and the :class:`Motion` that is estimated from recorded codes before the training. All
arithmetic on poses is in integers: the same codes are recalled on every device, in every batch, and by ``forward`` and
``step`` of a trunk.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from worldmodel.errors import ConfigError
from worldmodel.heads.base import GridSpec
from worldmodel.nn.modules import centred
from worldmodel.priors.base import Sample
from worldmodel.priors.motion import Motion, estimate_motion, simplified
from worldmodel.util.ranges import Count, Positive, Whole

CIRCLE = 2**16  # units of a full turn
UNIT = 2**8  # units of one standard deviation of the expected similarity
SCALE_BITS, TABLE_BITS, ORDER_BITS = 16, 14, 20
NOWHERE = 2**40  # squared distance of a frame that is not there
FEATURES = 5


class Recalled(NamedTuple):
    """What is recalled for the next grid: for each of its columns, a column of a past grid."""

    codes: Tensor  # (B, h, w) int64; −1 where nothing is recalled
    features: Tensor  # (B, FEATURES, h, w) float32: expected similarity, offset, shift, displacement (2)


class PoseMemory(nn.Module):
    """Recalls for every column of the next grid the column of a past grid that is expected to resemble it most.

    Until :meth:`estimate` was called, nothing is recalled.

    Args:
        spec: of the grids and the actions.
        window: number of past frames that are kept. recent: number of the latest ones that are not recalled, because
            the trunk reads them. limit: a column is recalled if its q (see :class:`Motion`) is below this.
        windows, steps: of :func:`~worldmodel.priors.motion.estimate_motion`.
    """

    def __init__(
        self,
        spec: GridSpec,
        window: Count = 64,
        recent: Whole = 4,
        limit: Positive = 6.0,
        windows: Count = 4000,
        steps: Count = 300,
    ):
        super().__init__()
        spec.require_one_grid(self)
        if len(spec.grid) != 2:
            raise ConfigError(
                f"PoseMemory is for grids of rows and columns; this tokenizer makes grids of {spec.grid}: choose "
                "prior=conv, or prior=speech for sound"
            )
        if recent >= window:
            raise ConfigError(f"PoseMemory: window={window} must be larger than recent={recent}")
        self.grid, self.window, self.recent, self.limit = spec.grid, window, recent, limit
        self.action_names, self.extent = spec.action_names, (windows, steps)
        actions, columns = spec.num_actions + 1, spec.grid[1]  # index 0: no action
        self.turn = nn.Buffer(torch.zeros(actions, dtype=torch.int64))  # units of CIRCLE
        self.move = nn.Buffer(torch.zeros(actions, 2, dtype=torch.int64))  # units of UNIT
        self.apart = nn.Buffer(torch.zeros(columns, columns, dtype=torch.int64))  # j − i in units of CIRCLE
        self.shift = nn.Buffer(torch.zeros(columns, columns, dtype=torch.int64))  # its part of q
        self.scale = nn.Buffer(torch.zeros((), dtype=torch.int64))  # units of UNIT per unit of CIRCLE · 2^SCALE_BITS
        angle = torch.arange(CIRCLE, dtype=torch.float64) * (2 * math.pi / CIRCLE)
        table = (torch.stack([angle.cos(), angle.sin()]) * 2**TABLE_BITS).round().to(torch.int64)
        self.table = nn.Buffer(table, persistent=False)
        self.vectors = nn.Buffer(centred(spec.codebook), persistent=False)

    def estimate(self, sample: Sample, generator: Generator) -> str:
        """Estimate the motion of the camera from windows of codes; returns it in words."""
        motion = estimate_motion(sample, self.vectors, len(self.action_names), generator, *self.extent)
        if motion is None:
            return "motion of the camera: unknown, since no recorded window has two frames"
        self.set_motion(simplified(motion))
        degrees = (self.turn[1:].double() * 360 / CIRCLE).tolist()
        distances = (self.move[1:].double().norm(dim=1) / UNIT).tolist()
        motions = zip(self.action_names, degrees, distances, strict=True)
        parts = [f"{name} {turn:+.0f}°, {moved:.1f}" for name, turn, moved in motions]
        return f"motion of the camera for each action, turn and distance: {'; '.join(parts)}"

    def set_motion(self, motion: Motion) -> None:
        """Recall by this motion of the camera from now on."""
        circle = float(motion.circle)
        offset, shift, distance = motion.widths.tolist()
        column = torch.arange(self.grid[1])
        apart = (column - column[:, None]).double()
        self.turn[1:] = (motion.turn.double() * (CIRCLE / circle)).round().to(torch.int64)
        self.move[1:] = (motion.move.double() * (UNIT / distance)).round().to(torch.int64)
        self.apart.copy_((apart * (CIRCLE / circle)).round().to(torch.int64))
        self.shift.copy_((apart * (UNIT / shift)).square().round().to(torch.int64))
        self.scale.fill_(round(UNIT * circle / offset * 2**SCALE_BITS / CIRCLE))

    def recall(self, grids: Tensor, actions: Tensor) -> Recalled:
        """grids (B, M, h, w) int64, each from before one of the actions (B, M) int64; oldest first."""
        rows, columns = self.grid
        heading, x, y = self._poses(actions)
        old = slice(0, max(actions.shape[1] - self.recent, 1))
        absent = grids[:, old, 0, 0] < 0
        far = (x[:, old].square() + y[:, old].square()).masked_fill(absent, NOWHERE)
        offset = (self.apart - heading[:, old, None, None] + CIRCLE // 2) % CIRCLE - CIRCLE // 2  # (B, M', i, j)
        offset = (offset * self.scale) >> SCALE_BITS
        q = offset.square() + self.shift + far[..., None, None]
        # No two entries are equal, so that the least is the same everywhere; the newest frame wins where q is equal.
        order = torch.arange(q.shape[1] * columns, device=q.device).flip(0).view(-1, columns, 1)
        best, which = ((q << ORDER_BITS) + order).flatten(1, 2).min(1)  # (B, j)
        q, frame, i = best >> ORDER_BITS, which // columns, which % columns
        known = (q < self.limit * UNIT**2) & (self.scale > 0)
        batch = torch.arange(actions.shape[0], device=actions.device)[:, None]
        codes = grids.transpose(2, 3)[batch, frame, i].transpose(1, 2)  # (B, h, j)
        parts = (
            (q / (-2 * UNIT**2)).exp(),
            offset.flatten(1, 2).gather(1, which[:, None])[:, 0] / UNIT,
            (torch.arange(columns, device=i.device) - i) / columns,
            x[batch, frame] / UNIT,
            y[batch, frame] / UNIT,
        )
        features = torch.stack([part.float() * known for part in parts], 1)
        return Recalled(codes.where(known[:, None], -1), features[:, :, None].expand(-1, -1, rows, -1))

    def _poses(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """actions (B, M) → for the frame before each of them, the turn (B, M) of its content until after the last
        one, in units of CIRCLE, and the displacement since, along and across, in units of UNIT."""
        turns, moves = self.turn[actions + 1], self.move[actions + 1]
        heading = turns.flip(1).cumsum(1).flip(1)
        cos, sin = self.table[:, (heading - turns) % CIRCLE]
        along = moves[..., 0] * cos + moves[..., 1] * sin
        across = moves[..., 1] * cos - moves[..., 0] * sin
        x, y = ((part.flip(1).cumsum(1).flip(1) >> TABLE_BITS) for part in (along, across))
        return heading, x, y
