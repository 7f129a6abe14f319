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
NEAR = UNIT // 8  # offset up to which a column is on both sides, since poses are rounded
FEATURES = 5


class Recalled(NamedTuple):
    """What is recalled for the next grid: R times for each of its columns, a column of a past grid."""

    codes: Tensor  # (B, R, h, w) int64; −1 where nothing is recalled
    features: Tensor  # (B, R, FEATURES, h, w) float32: expected similarity, offset, shift, displacement (2)


class PoseMemory(nn.Module):
    """Recalls for every column of the next grid the columns of past grids that are expected to resemble it most.

    The content of a past column has usually moved to a place between two columns. Therefore two columns are recalled,
    one whose content lies at the column's place or to the left of it, and one at or to the right of it; both of the
    latest frames, which show how the view moves, and of the frames before these, which show what comes back into it.
    Until :meth:`estimate` was called, nothing is recalled.

    Args:
        spec: of the grids and the actions.
        window: number of past frames that are kept. recent: number of the latest ones, of which columns are recalled
            separately; 0: of all frames together. limit: a column is recalled if its q (see :class:`Motion`) is below
            this.
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
        self.recalls = 4 if recent else 2  # R
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
        heading, x, y = self._poses(actions)
        absent = grids[:, :, 0, 0] < 0
        far = (x.square() + y.square()).masked_fill(absent, NOWHERE)
        offset = (self.apart - heading[..., None, None] + CIRCLE // 2) % CIRCLE - CIRCLE // 2  # (B, M, i, j)
        offset = (offset * self.scale) >> SCALE_BITS
        q = offset.square() + self.shift + far[..., None, None]
        # No two entries are equal, so that the least is the same everywhere; the newest frame wins where q is equal.
        rows, columns = self.grid
        order = torch.arange(q.shape[1] * columns, device=q.device).flip(0).view(-1, columns, 1)
        q = (q << ORDER_BITS) + order
        sides = [q.masked_fill(away, NOWHERE << ORDER_BITS) for away in (offset > NEAR, offset < -NEAR)]
        border = max(q.shape[1] - self.recent, 1)
        parts = [slice(0, border), slice(border, None)][: self.recalls // 2]
        least = [side[:, part].flatten(1, 2).min(1).values for part in parts for side in sides]
        best = torch.stack(least, 1)  # (B, R, j)
        q = best >> ORDER_BITS
        which = order.shape[0] * columns - 1 - (best & (2**ORDER_BITS - 1))
        known = (q < self.limit * UNIT**2) & (self.scale > 0)
        frame, i = which // columns, which % columns
        batch = torch.arange(q.shape[0], device=q.device)[:, None, None]
        codes = grids.transpose(2, 3)[batch, frame, i].where(known[..., None], -1).transpose(2, 3)  # (B, R, h, j)
        j = torch.arange(columns, device=q.device)
        values = (
            (q / (-2 * UNIT**2)).exp(),
            offset[batch, frame, i, j] / UNIT,
            (j - i) / columns,
            x[batch, frame] / UNIT,
            y[batch, frame] / UNIT,
        )
        features = torch.stack([value.float() for value in values], 2) * known[:, :, None]  # (B, R, FEATURES, j)
        return Recalled(codes, features[..., None, :].expand(-1, -1, -1, rows, -1))

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
