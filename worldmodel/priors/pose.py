"""A memory of past grids, which finds them again by the pose of the camera.

The pose follows from the actions and the :class:`Motion` that is estimated from recorded codes before the training. All
arithmetic on poses is in integers: the same codes are recalled on every device, in every batch, and by ``forward`` and
``step`` of a trunk.
"""

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
        emphasis: how many times as much as in training the codes recalled from the older frames count in a dream whose
            latest frames were all dreamt (see :class:`~worldmodel.priors.ConvTrunk`); 1: as in training.
        windows, steps: of :func:`~worldmodel.priors.motion.estimate_motion`.
    """

    def __init__(
        self,
        spec: GridSpec,
        window: Count = 64,
        recent: Whole = 4,
        limit: Positive = 6.0,
        emphasis: Positive = 1.0,
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
        older = torch.arange(self.recalls) < 2
        self.emphasis = nn.Buffer(torch.where(older, emphasis, 1.0), persistent=False)  # (R,)
        self.action_names, self.extent = spec.action_names, (windows, steps)
        actions, columns = spec.num_actions + 1, spec.grid[1]  # index 0: no action
        self.turn = nn.Buffer(torch.zeros(actions, dtype=torch.int64))  # units of CIRCLE
        self.move = nn.Buffer(torch.zeros(actions, 2, dtype=torch.int64))  # units of UNIT
        self.apart = nn.Buffer(torch.zeros(columns, columns, dtype=torch.int64))  # j − i in units of CIRCLE
        self.shift = nn.Buffer(torch.zeros(columns, columns, dtype=torch.int64))  # its part of q
        self.scale = nn.Buffer(torch.zeros((), dtype=torch.int64))  # units of UNIT per unit of CIRCLE · 2^SCALE_BITS
        angle = torch.arange(CIRCLE, dtype=torch.float64) * (2 * math.pi / CIRCLE)
        cos, sin = (torch.stack([angle.cos(), angle.sin()]) * 2**TABLE_BITS).round().to(torch.int64)
        turned = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
        self.turned = nn.Buffer(turned, persistent=False)  # (CIRCLE, 2, 2): matrices that turn a displacement back
        column, place = torch.arange(columns), torch.arange(window * columns)
        self.column = nn.Buffer(column, persistent=False)
        self.place = nn.Buffer(place.view(window, columns, 1), persistent=False)  # of a past column, oldest first
        self.sides = nn.Buffer(torch.tensor([1, -1]).view(2, 1, 1, 1), persistent=False)
        units = torch.tensor([2 * UNIT**2, UNIT, columns, UNIT, UNIT], dtype=torch.float32)
        self.units = nn.Buffer(units.view(FEATURES, 1), persistent=False)
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
        """grids (B, M, h, w) int64, each from before one of the actions (B, M) int64, M ≤ ``window``; oldest first."""
        rows, columns = self.grid
        heading, position = self._poses(actions)
        far = position.square().sum(-1).masked_fill(grids[:, :, 0, 0] < 0, NOWHERE)
        offset = (self.apart - heading[..., None, None]).to(torch.int16)  # (B, M, i, j): 16 bits wrap as the circle
        offset = (offset * self.scale.view(1)) >> SCALE_BITS
        q = torch.addcmul(self.shift, offset, offset) + far[..., None, None]
        # No two ranks are equal, so that the best is the same everywhere; the newest frame wins where q is equal.
        rank = torch.sub(self.place[: q.shape[1]], q, alpha=2**ORDER_BITS)
        away = offset[:, None] * self.sides > NEAR
        ranks = rank[:, None].masked_fill(away, -NOWHERE << ORDER_BITS)  # (B, 2, M, i, j)
        border = max(q.shape[1] - self.recent, 1)
        parts = [slice(0, border), slice(border, None)][: self.recalls // 2]
        best = torch.cat([ranks[:, :, part].flatten(2, 3).amax(2) for part in parts], 1)  # (B, R, j)
        minus_q, place = best >> ORDER_BITS, best & (2**ORDER_BITS - 1)
        unknown = (minus_q <= -self.limit * UNIT**2) | (self.scale <= 0)
        frame, i = place // columns, place % columns
        # shape[0] instead of len, which would fix the batch of an exported graph.
        batch = torch.arange(grids.shape[0], device=grids.device)[:, None, None]
        codes = grids.transpose(2, 3)[batch, frame, i].masked_fill(unknown[..., None], -1)  # (B, R, j, h)
        x, y = position[batch, frame].unbind(-1)
        found = minus_q, offset[batch, frame, i, self.column], self.column - i, x, y
        features = torch.stack(found, 2) / self.units  # (B, R, FEATURES, j)
        features[:, :, 0].exp_()
        features = features.masked_fill(unknown[:, :, None], 0)
        return Recalled(codes.transpose(2, 3), features[..., None, :].expand(-1, -1, -1, rows, -1))

    def emphasized(self, dreamt: Tensor) -> Tensor:
        """The number of dreamt frames (B,) among the latest → the factor of each recalled code, (B, R) float32."""
        latest = max(self.recent, 1)
        return 1 + (dreamt.clamp(max=latest) / latest)[:, None] * (self.emphasis - 1)

    def _poses(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """actions (B, M) → for the frame before each of them, the turn (B, M) of its content until after the last
        one, in units of CIRCLE, and the displacement since, along and across, (B, M, 2) in units of UNIT."""
        known = actions + 1
        turns, moves = self.turn[known], self.move[known]
        later = _sum_behind(turns)
        steps = (self.turned[later & (CIRCLE - 1)] * moves[..., None, :]).sum(-1)
        return later + turns, (_sum_behind(steps) + steps) >> TABLE_BITS


def _sum_behind(values: Tensor) -> Tensor:
    """Values (B, M, …) → the sum of those behind each along M."""
    sums = values.cumsum(1)
    return sums[:, -1:] - sums
