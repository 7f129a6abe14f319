"""The memory that recalls codes by the pose of the camera, on a panorama of random codes whose motion is exact."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor

from worldmodel.errors import ConfigError
from worldmodel.heads import GridSpec
from worldmodel.nn.modules import centred
from worldmodel.priors import ConvTrunk
from worldmodel.priors.base import Sample
from worldmodel.priors.motion import Motion, estimate_motion, simplified
from worldmodel.priors.pose import PoseMemory
from worldmodel.types import Segment

CIRCLE, COLUMNS, ROWS, CODES = 24, 6, 4, 64
NAMES = ("noop", "left", "right", "forward")
TURNS = torch.tensor([0, 2, -2, 0])  # columns by which an action moves the content of a view


def codebook() -> Tensor:
    return torch.randn(CODES, 16, generator=torch.Generator().manual_seed(7))


def views(actions: Tensor, seed: int = 0) -> Tensor:
    """actions (B, T) → the views (B, T, ROWS, COLUMNS) of rooms with a panorama each; forward enters another room."""
    batch, steps = actions.shape
    rooms = torch.randint(CODES, (batch, steps + 1, ROWS, CIRCLE), generator=torch.Generator().manual_seed(seed))
    heading = -TURNS[actions.clamp(min=0)].cumsum(1)
    room = (actions == 3).long().cumsum(1)
    column = (heading[..., None] + torch.arange(COLUMNS)) % CIRCLE  # (B, T, COLUMNS)
    rows = torch.arange(batch)[:, None]
    return rooms[rows, room].gather(-1, column[:, :, None].expand(-1, -1, ROWS, -1))


def walk(batch: int, generator: torch.Generator, length: int = 33) -> Segment:
    """Turns in runs, so that some windows contain a full circle, and now and then a step into another room."""
    runs = torch.randint(1, 3, (batch, length // 4 + 1), generator=generator).repeat_interleave(4, 1)[:, :length]
    actions = torch.where(torch.rand(batch, length, generator=generator) < 0.05, 3, runs)
    nothing = torch.zeros(batch, length, dtype=torch.bool)
    seed = int(torch.randint(2**31, (), generator=generator))
    return Segment(actions, nothing.float(), nothing, nothing, ~nothing, codes=views(actions, seed))


def memory(**settings: int) -> PoseMemory:
    made = PoseMemory(GridSpec((ROWS, COLUMNS), codebook(), NAMES), **settings)
    zero = torch.zeros(4)
    move = torch.stack([torch.tensor([0.0, 0, 0, 9]), zero], 1)
    made.set_motion(Motion(TURNS.float(), move, torch.tensor(24.0), torch.tensor([0.3, 4.0, 1.0]), torch.tensor(1.0)))
    return made


def recall(made: PoseMemory, actions: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Views (1, T, …) under the actions, and what is recalled for the last of them: codes (R, …), features (R, …)."""
    acts = torch.tensor([actions])
    grids = views(acts)
    recalled = made.recall(grids[:, :-1], acts[:, 1:])
    return grids, recalled.codes[0], recalled.features[0]


def with_fixed_rows(batch: int, generator: torch.Generator) -> Segment:
    """A walk in which the last two of four rows are the same in every view, as a weapon and the floor below it are."""
    segment = walk(batch, generator)
    assert segment.codes is not None
    codes = segment.codes.clone()
    codes[:, :, 2:] = torch.arange(2 * COLUMNS).view(2, COLUMNS)
    return dataclasses.replace(segment, codes=codes)


@pytest.mark.parametrize("sample", [walk, with_fixed_rows])
def test_the_motion_is_estimated_from_windows(sample: Sample) -> None:
    motion = estimate_motion(sample, centred(codebook()), 4, torch.Generator().manual_seed(0), windows=500, steps=120)
    assert motion is not None
    torch.testing.assert_close(motion.turn[:3], TURNS[:3].float(), atol=0.1, rtol=0)
    assert motion.circle.item() == pytest.approx(CIRCLE, abs=0.5)
    assert motion.move[3].norm() / motion.widths[2] > 1.5 > 0.5 > motion.move[1:3].norm(dim=1).max() / motion.widths[2]


def test_an_estimate_is_a_function_of_its_generator() -> None:
    extent = {"windows": 20, "steps": 3}
    first, second = (estimate_motion(walk, codebook(), 4, torch.Generator().manual_seed(1), **extent) for _ in range(2))
    assert first is not None and second is not None
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_without_turns_the_circumference_is_the_largest_one() -> None:
    """Views are never apart by more than their width, so that nothing indicates a circle."""

    def standing(batch: int, generator: torch.Generator) -> Segment:
        segment = walk(batch, generator)
        actions = torch.zeros_like(segment.actions)
        return dataclasses.replace(segment, actions=actions, codes=views(actions))

    motion = estimate_motion(standing, codebook(), 4, torch.Generator().manual_seed(0), windows=50, steps=30)
    assert motion is not None and motion.circle.item() == pytest.approx(10 * COLUMNS)


def test_the_motion_is_unknown_where_no_window_has_two_frames() -> None:
    def single(batch: int, generator: torch.Generator) -> Segment:
        segment = walk(batch, generator)
        valid = torch.arange(segment.actions.shape[1]).expand_as(segment.actions) == 32
        return dataclasses.replace(segment, valid=valid)

    made = PoseMemory(GridSpec((ROWS, COLUMNS), codebook(), NAMES), windows=10, steps=2)
    assert "unknown" in made.estimate(single, torch.Generator().manual_seed(0))
    _, codes, _ = recall(made, [-1, *[1] * 12])
    assert (codes == -1).all()


@pytest.mark.parametrize("loop", [[1] * 12, [1] * 5 + [2] * 5, [2] * 12, [1] * 3 + [0] * 9 + [2] * 3])
def test_a_view_that_was_seen_is_recalled_exactly(loop: list[int]) -> None:
    grids, codes, features = recall(memory(), [-1, 0, *loop])
    assert torch.equal(grids[0, -1], grids[0, 1])
    exactly = torch.tensor([1.0, 0, 0, 0, 0])[:, None, None].expand_as(features[0])
    for side in (0, 1):  # of the frames before the latest ones
        assert torch.equal(codes[side], grids[0, -1])
        torch.testing.assert_close(features[side], exactly, atol=0.02, rtol=0)


def test_columns_come_from_different_frames() -> None:
    """After three turns of two columns to the left and one back, four columns were seen before the latest frames."""
    grids, codes, _ = recall(memory(recent=1), [-1, 1, 1, 1, 1, 2, 2])
    assert torch.equal(codes[0], grids[0, -1])


def test_the_latest_frames_are_recalled_where_they_have_moved_to() -> None:
    grids, codes, features = recall(memory(), [-1, *[1] * 7])  # two columns a turn: four of six are in the last view
    for side in (2, 3):
        assert torch.equal(codes[side, :, 2:], grids[0, -1, :, 2:])
        assert (codes[side, :, :2] == -1).all()
        torch.testing.assert_close(features[side, 2, 0, 2:], torch.full((4,), 2 / 6))  # shift in widths of a view


def test_columns_on_both_sides_are_recalled() -> None:
    """A turn of a column and a half moves each column between two others."""
    made = PoseMemory(GridSpec((ROWS, COLUMNS), codebook(), NAMES))
    motion = Motion(
        torch.tensor([0, 1.5, -1.5, 0]), torch.zeros(4, 2), torch.tensor(24.0), torch.ones(3), torch.ones(())
    )
    made.set_motion(motion._replace(widths=torch.tensor([1.0, 9.0, 1.0])))
    view = torch.arange(COLUMNS).expand(1, 1, ROWS, -1)
    recalled = made.recall(torch.cat([torch.full_like(view, -1), view], 1), torch.tensor([[-1, 1]]))
    left, right = recalled.features[0, 2:, 1, 0, 2:4].unbind()  # offsets of columns that have neighbours on both sides
    assert (left < 0).all() and (right > 0).all()
    torch.testing.assert_close(right - left, torch.ones(2), atol=0.02, rtol=0)
    assert (recalled.codes[0, 2, 0, 2:4] - recalled.codes[0, 3, 0, 2:4]).abs().tolist() == [1, 1]


def test_nothing_is_recalled_of_what_was_not_seen() -> None:
    _, codes, features = recall(memory(), [-1, *[1] * 7])  # the view is opposite to the first, and the rest is recent
    assert (codes[:2] == -1).all() and (features[:2] == 0).all()
    _, codes, _ = recall(memory(), [-1, 0, 0, 0, 0, 0, 3])  # another room
    assert (codes == -1).all()


def test_an_unknown_motion_recalls_nothing() -> None:
    made = PoseMemory(GridSpec((ROWS, COLUMNS), codebook(), NAMES))
    _, codes, features = recall(made, [-1, *[1] * 12])
    assert (codes == -1).all() and (features == 0).all()


def test_missing_frames_are_not_recalled() -> None:
    made, acts = memory(), torch.tensor([[-1, *[1] * 12]])
    grids = views(acts)
    hidden = grids.clone()
    hidden[:, :3] = -1
    codes = made.recall(hidden[:, :-1], acts[:, 1:]).codes[0]
    assert (codes[:2, :, :2] == -1).all()


def test_the_newest_of_equal_frames_is_recalled() -> None:
    made, acts = memory(recent=1), torch.tensor([[-1, 0, 0, 0]])
    grids = views(acts)
    grids[0, 1] = (grids[0, 1] + 1) % CODES
    assert torch.equal(made.recall(grids[:, :-1], acts[:, 1:]).codes[0, 0], grids[0, 1])


def test_rows_of_a_batch_do_not_depend_on_each_other() -> None:
    made, segment = memory(), walk(8, torch.Generator().manual_seed(3))
    assert segment.codes is not None
    together = made.recall(segment.codes[:, :-1], segment.actions[:, 1:])
    for row in range(8):
        alone = made.recall(segment.codes[row : row + 1, :-1], segment.actions[row : row + 1, 1:])
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.equal(alone.features[0], together.features[row])


def test_settings_and_grids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"window=4 must be larger than recent=4"):
        memory(window=4)
    with pytest.raises(ConfigError, match=r"rows and columns.*\(8,\)"):
        PoseMemory(GridSpec((8,), codebook(), NAMES))


def test_small_motions_are_zero_and_turns_fit_the_circle() -> None:
    move = torch.tensor([[-0.14, -0.2], [-0.03, 0.06], [0.01, 0.016], [0.3, 0.4]])
    estimated = Motion(
        torch.tensor([0.02, 1.99, -2.03, -0.04]), move, torch.tensor(24.1), torch.ones(3), torch.ones(())
    )
    simple = simplified(estimated)
    torch.testing.assert_close(simple.turn, torch.tensor([0, 1.0, -1.0, 0]) * 24.1 / 12)
    torch.testing.assert_close(simple.move, torch.tensor([[0, 0], [0, 0], [0, 0], [0.3, 0.4]]))
    other = simplified(estimated._replace(turn=torch.tensor([0.0, 2.0, -1.7, 0.9])))
    assert other.turn.abs().unique().numel() == 4  # these sizes differ by more than errors do
    none = simplified(estimated._replace(turn=torch.zeros(4), move=torch.zeros(4, 2)))
    assert not none.turn.any() and not none.move.any()


def contexts_of_a_dream(emphasis: float, actions: Tensor, seen: int) -> Tensor:
    """Contexts (B, T − seen − 1, N, width) of the steps after ``seen`` recorded views; the one before the last is not
    dreamt but recorded. All frames are views of the panorama."""
    torch.manual_seed(0)
    pose = partial(PoseMemory, window=12, recent=2, emphasis=emphasis)
    trunk = ConvTrunk(GridSpec((ROWS, COLUMNS), codebook(), NAMES), 16, 1, embed=8, pose=pose)
    assert trunk.pose is not None
    trunk.pose.load_state_dict(memory(window=12, recent=2).state_dict())
    grids = views(actions)
    previous = torch.cat([torch.full_like(grids[:, :1], -1), grids[:, :-1]], 1)
    state, steps = trunk.begin(len(actions)), actions.shape[1]
    dreamt = [t for t in range(seen, steps) if t != steps - 2]
    found = {}
    for t in range(steps):
        if t in dreamt:
            found[t], state = trunk.step(state, previous[:, t], actions[:, t])
        else:
            state = trunk.observe(state, previous[:, t], actions[:, t])
    contexts = torch.stack([found[t] for t in dreamt], 1)
    if emphasis == 1:
        exact = trunk(previous, actions, seen)
        torch.testing.assert_close(contexts, exact[:, [t - seen for t in dreamt]])
    return contexts.detach()


def test_older_frames_count_more_once_the_latest_ones_were_dreamt() -> None:
    actions = torch.tensor([[-1, 1, 1, 1, 2, 2, 2, 1, 1, 2, 2, 2], [-1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1]])
    plain, double, triple = (contexts_of_a_dream(emphasis, actions, 6) for emphasis in (1.0, 2.0, 3.0))
    changed = (double - plain).abs().amax((0, 2, 3))
    assert changed[0] == changed[-1] == 0  # the latest frames were recorded
    assert changed[1:4].min() > 0.1
    torch.testing.assert_close(triple - plain, 2 * (double - plain), rtol=1e-4, atol=1e-5)  # linear in emphasis − 1
    of_one = contexts_of_a_dream(3.0, actions, 7)[:, 1] - contexts_of_a_dream(1.0, actions, 7)[:, 1]
    torch.testing.assert_close(of_one, (double - plain)[:, 2], rtol=1e-4, atol=1e-5)  # half as much after one of two
