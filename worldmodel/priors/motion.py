"""The motion of the camera under each action, estimated from recorded codes."""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from worldmodel.priors.base import Sample

STARTS, BATCH = 8, 512  # random starts of the estimate, pairs a step
CIRCLES = (1.5, 10.0)  # smallest and largest circumference of the panorama, in widths of a view
PAIRS = 12  # pairs of frames in a window
SMALL_TURN, SMALL_MOVE, ALIKE = 0.3, 0.5, 0.05  # see :func:`simplified`
RATES = {"turn": 0.05, "move": 0.05, "circle": 0.02, "widths": 0.03, "strength": 0.03}


class Motion(NamedTuple):
    """The turn and the displacement of the camera for each action.

    A grid is a view of w columns of a panorama of ``circle`` columns. Action a moves the content of a view by
    ``turn[a]`` columns and the camera by ``move[a]``, in a plane whose unit is arbitrary. The expected similarity of
    column i of an earlier view and column j of a later one, beyond the mean of the two views, is ``strength`` ·
    exp(−q/2) with

        q = (m / offset)² + ((j − i) / shift)² + (d / distance)²,

    where m is the distance on the circle between j and the place to which the content of column i has moved, and d the
    distance between the cameras. ``widths`` are offset and shift in columns, and distance.
    """

    turn: Tensor  # (A,)
    move: Tensor  # (A, 2)
    circle: Tensor  # ()
    widths: Tensor  # (3,)
    strength: Tensor  # ()


def estimate_motion(
    sample: Sample, vectors: Tensor, num_actions: int, generator: Generator, windows: int = 4000, steps: int = 300
) -> Motion | None:
    """The motion that explains best which columns of a frame resemble which columns of an earlier one.

    ``vectors`` (K, D): those of the codes, whose scalar product is the similarity of two codes. The turns follow
    roughly from consecutive frames. They and the displacements are then improved by gradient descent from several
    random starts, for which the circumference matters little, since few frames are more than a view apart; it is
    chosen by those that are. ``windows``: number of windows that are drawn. ``steps``: of gradient descent. None if no
    window has two frames.
    """
    similarity, actions = _pairs(sample, vectors, windows, generator)
    if not len(actions):
        return None
    columns = similarity.shape[-1]
    values = _start(_rough_turns(similarity, actions, num_actions), columns, generator)
    with torch.enable_grad():
        groups = [{"params": [values[name].requires_grad_()], "lr": rate} for name, rate in RATES.items()]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
        for step in range(steps):
            for group, rate in zip(groups, RATES.values(), strict=True):
                group["lr"] = rate * min(1.0, 3 * (1 - step / steps))
            rows = torch.randint(len(actions), (BATCH,), generator=generator)
            error = _expected(values, actions[rows], columns) - similarity[rows]
            optimizer.zero_grad()
            error.square().mean((1, 2, 3)).sum().backward()
            optimizer.step()
    with torch.no_grad():
        parts = zip(actions.split(BATCH), similarity.split(BATCH), strict=True)
        errors = [(_expected(values, part, columns) - wanted).square().mean((1, 2, 3)) for part, wanted in parts]
        best = int(torch.stack(errors).mean(0).argmin())
        values = {name: value[best, None] for name, value in values.items()}
        values["circle"] = _scan(values, similarity, actions)
        turn, move = values["turn"][0].detach(), values["move"][0].detach()
        return Motion(turn, move, **{name: values[name][0].exp() for name in ("circle", "widths", "strength")})


def simplified(motion: Motion) -> Motion:
    """The motion without small differences, whose errors would add up over many steps.

    Turns below ``SMALL_TURN`` and displacements below ``SMALL_MOVE`` of the largest one are 0. Turns whose sizes differ
    by at most ``ALIKE`` get the mean of their sizes; if nearly a whole number of these makes a circle (to within
    ``ALIKE``), exactly that does.
    """
    sizes = motion.turn.abs()
    sizes = sizes.where(sizes >= SMALL_TURN * sizes.max(), 0)
    distances = motion.move.norm(dim=1)
    move = motion.move.where((distances >= SMALL_MOVE * distances.max())[:, None], 0)
    for size in sizes.clone():
        alike = (sizes - size).abs() <= ALIKE * size
        mean = sizes[alike].mean()
        count = (motion.circle / mean.clamp(min=1e-6)).round()
        whole = motion.circle / count
        sizes[alike] = whole if abs(whole - mean) <= ALIKE * mean else mean
    return motion._replace(turn=sizes * motion.turn.sign(), move=move)


def _pairs(sample: Sample, vectors: Tensor, windows: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pairs of frames: the similarity (N, i, j) of their columns, and the actions (N, L) that led from the earlier to
    the later one, the last of them first, −1 behind them. A third of the frames are consecutive, another third near.

    The mean similarity of frames of different windows is subtracted, since it comes from what is at the same place in
    all views (a weapon, a horizon).
    """
    similarity, actions, unrelated = [], [], []
    for drawn in range(0, windows, 500):
        segment = sample(min(500, windows - drawn), generator)
        assert segment.codes is not None
        count, length = segment.actions.shape
        longest = length - 1
        near = (1 - torch.rand(count, PAIRS, generator=generator)).log() * (-longest / 4)
        far = longest * (0.25 + 0.75 * torch.rand(count, PAIRS, generator=generator))
        gap = torch.stack([torch.ones_like(near), near, far])[torch.arange(PAIRS) % 3, :, torch.arange(PAIRS)].T
        gap = gap.long().clamp(1, longest)  # (B, PAIRS)
        last = gap + ((length - gap) * torch.rand(count, PAIRS, generator=generator)).long()
        rows = torch.arange(count)[:, None].expand_as(gap)
        fine = segment.valid[rows, last - gap] & segment.valid[rows, last]
        rows, gap, last = rows[fine], gap[fine], last[fine]
        earlier, later = (vectors[segment.codes[rows, index]] for index in (last - gap, last))
        similarity.append(torch.einsum("nhid,nhjd->nij", earlier, later) / earlier.shape[1])
        others = later.roll(PAIRS, 0)  # of the next window
        unrelated.append(torch.einsum("nhid,nhjd->nij", earlier, others) / earlier.shape[1])
        steps = torch.arange(longest)
        between = segment.actions[rows[:, None], (last[:, None] - steps).clamp(min=0)]
        actions.append(between.masked_fill(steps >= gap[:, None], -1))
    return _centred(torch.cat(similarity) - torch.cat(unrelated).mean(0)), torch.cat(actions)


def _rough_turns(similarity: Tensor, actions: Tensor, num_actions: int) -> Tensor:
    """The shift (A,) of consecutive frames, in whole columns, at which they are most similar after each action."""
    columns = similarity.shape[-1]
    consecutive = (actions[:, 1:] < 0).all(1)
    shifts = torch.arange(2 - columns, columns - 1)
    turns = torch.zeros(num_actions)
    for action in range(num_actions):
        rows = consecutive & (actions[:, 0] == action)
        if rows.any():
            mean = similarity[rows].mean(0)
            turns[action] = shifts[torch.stack([mean.diagonal(int(shift)).mean() for shift in shifts]).argmax()]
    return turns


def _start(turns: Tensor, columns: int, generator: Generator) -> dict[str, Tensor]:
    """Values (STARTS, …) of all parameters near ``turns`` (A,); those that are positive as logarithms."""
    low, high = (math.log(columns * factor) for factor in CIRCLES)
    return {
        "turn": turns + 0.2 * torch.randn(STARTS, len(turns), generator=generator),
        "move": 0.1 * torch.randn(STARTS, len(turns), 2, generator=generator),
        "circle": torch.linspace(low, high, STARTS),
        "widths": torch.tensor([0.8, 6.0, 1.0]).log().repeat(STARTS, 1),
        "strength": torch.full((STARTS,), 0.5).log(),
    }


def _scan(values: dict[str, Tensor], similarity: Tensor, actions: Tensor) -> Tensor:
    """The logarithm (1,) of the circumference whose expectation agrees best with pairs that are apart by more than a
    view: the largest Σ s·e / √Σ e² over similarities s and expectations e, each beyond its mean over the pairs. If none
    is above 0, nothing indicates a circle, and it is the largest circumference."""
    columns = similarity.shape[-1]
    turns = _counts(actions, values["turn"].shape[-1]).sum(1) @ values["turn"][0]
    apart = turns.abs() > columns
    similarity, actions = similarity[apart], actions[apart]
    low, high = (columns * factor for factor in CIRCLES)
    best = torch.tensor(float(high))
    for step in (0.5, 0.05):
        circles, scores = torch.arange(low, high, step), []
        for circle in circles:
            expected = _expected({**values, "circle": circle.log()[None]}, actions, columns)[0]
            expected = expected - expected.mean(0)
            scores.append((similarity * expected).sum() / expected.square().sum().sqrt().clamp(min=1.0))
        score, index = torch.stack(scores).max(0)
        if score <= 0:
            break
        best = circles[index]
        low, high = float(best) - step, float(best) + step
    return best.log()[None]


def _expected(values: dict[str, Tensor], actions: Tensor, columns: int) -> Tensor:
    """The expected similarity (R, N, i, j) under R values of the parameters."""
    circle = values["circle"].exp()[:, None, None]
    offset, shift, distance = (width[:, None, None, None] for width in values["widths"].exp().unbind(-1))
    counts = _counts(actions, values["turn"].shape[-1])
    turns = torch.einsum("nla,ra->rnl", counts, values["turn"])
    after = 2 * math.pi / circle * (turns.cumsum(-1) - turns)  # angle turned after each step
    along, across = torch.einsum("nla,rac->crnl", counts, values["move"])
    cos, sin = after.cos(), after.sin()
    x, y = (along * cos + across * sin).sum(-1), (across * cos - along * sin).sum(-1)
    column = torch.arange(columns)
    apart = (column - column[:, None]).float()  # (i, j)
    angle = math.pi / circle[..., None] * (apart - turns.sum(-1)[..., None, None])
    far = (x.square() + y.square())[..., None, None] / distance.square()
    q = (circle[..., None] / math.pi * angle.sin() / offset).square() + (apart / shift).square() + far
    return values["strength"].exp()[:, None, None, None] * _centred(torch.exp(-q / 2))


def _counts(actions: Tensor, num_actions: int) -> Tensor:
    """Actions (N, L), −1 for none → (N, L, A) float: one-hot, or zeros."""
    return F.one_hot(actions + 1, num_actions + 1)[..., 1:].float()


def _centred(similarity: Tensor) -> Tensor:
    """(..., i, j) minus its means over i and over j."""
    rows, columns = similarity.mean(-1, keepdim=True), similarity.mean(-2, keepdim=True)
    return similarity - rows - columns + similarity.mean((-2, -1), keepdim=True)
