"""Attention over time and what is built on it: stepping equals one pass at any length, and the window only slides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from worldmodel.errors import ConfigError
from worldmodel.heads import GridSpec
from worldmodel.nn.attention import TimeTransformer, WindowedAttention
from worldmodel.priors.frame_transformer import FrameTransformer, TimeMemory

WINDOW = 5
LENGTHS = (1, 3, WINDOW, 3 * WINDOW + 2)


def spread_out(module: nn.Module) -> Any:
    """float64, and far from the tidy start of training, where much is zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module.double()


@pytest.fixture
def stack() -> TimeTransformer:
    torch.manual_seed(0)
    return spread_out(TimeTransformer(width=12, blocks=2, heads=3, window=WINDOW))


@pytest.fixture(params=[(3, 4), (7,)], ids=str)
def grid(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.fixture(params=["memory", "trunk"])
def reader(request: pytest.FixtureRequest, grid: tuple[int, ...]) -> Any:
    """What reads grids and actions; both kinds have the calls of a trunk."""
    torch.manual_seed(0)
    spec, shape = (
        GridSpec(grid, torch.randn(9, 3), ("left", "right")),
        {"blocks": 2, "heads": 3, "window": WINDOW, "embed": 4},
    )
    if request.param == "memory":
        return spread_out(TimeMemory(spec, width=12, **shape))
    return spread_out(FrameTransformer(spec, width=8, model=12, spread=3, **shape))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def history(grid: tuple[int, ...], batch: int = 2, steps: int = 6) -> tuple[Tensor, Tensor]:
    """Previous grids and actions, nothing known at the first step."""
    generator = torch.Generator().manual_seed(1)
    previous = torch.randint(0, 9, (batch, steps, *grid), generator=generator)
    actions = torch.randint(0, 2, (batch, steps), generator=generator)
    previous[:, 0], actions[:, 0] = -1, -1
    return previous, actions


def stepped(reader: Any, state: Any, previous: Tensor, actions: Tensor) -> Tensor:
    """What one step after the other makes of a history, from a state on."""
    outputs = []
    for t in range(actions.shape[1]):
        output, state = reader.step(state, previous[:, t], actions[:, t])
        outputs.append(output)
    return torch.stack(outputs, 1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def attend(stack: TimeTransformer, x: Tensor) -> Tensor:
    """What one step after the other makes of x (B, T, width)."""
    outputs, caches = [], stack.begin(len(x))
    for now in x.unbind(1):
        output, caches = stack.step(now, caches)
        outputs.append(output)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("steps", LENGTHS)
def test_stepping_equals_one_pass(stack: TimeTransformer, steps: int) -> None:
    x = noise(2, steps, 12)
    close(attend(stack, x), stack(x))


@pytest.mark.parametrize("steps", LENGTHS)
def test_reading_frames_one_by_one_equals_one_pass(reader: Any, grid: tuple[int, ...], steps: int) -> None:
    previous, actions = history(grid, steps=steps)
    close(stepped(reader, reader.begin(2), previous, actions), reader(previous, actions))


def test_a_step_sees_its_window_and_nothing_else() -> None:
    torch.manual_seed(0)
    block = spread_out(WindowedAttention(12, 3, WINDOW))
    x = noise(1, 12, 12).requires_grad_()
    for step in (0, 3, 11):
        (gradient,) = torch.autograd.grad(block(x)[0, step].sum(), x)
        seen = gradient[0].abs().amax(-1).nonzero().flatten().tolist()
        assert seen == list(range(max(0, step - WINDOW + 1), step + 1))


def test_only_the_distance_counts(stack: TimeTransformer) -> None:
    reach = 2 * (WINDOW - 1)
    x = noise(1, 3 * WINDOW, 12)
    close(stack(x[:, 4:])[:, reach:], stack(x)[:, 4 + reach :])


def test_the_bias_tells_distances_apart(stack: TimeTransformer) -> None:
    x = noise(1, 4, 12)
    swapped = x[:, [1, 0, 2, 3]]
    assert not torch.allclose(stack(x)[:, 3], stack(swapped)[:, 3])


@pytest.mark.parametrize("first", [1, WINDOW, 8])
def test_leaving_out_the_first_steps_changes_no_other(stack: TimeTransformer, first: int) -> None:
    x, valid = noise(2, 9, 12), torch.tensor([[False] * 3 + [True] * 6, [True] * 9])
    close(stack(x, first, valid), stack(x, valid=valid)[:, first:])


def test_any_number_of_dimensions_may_lead(stack: TimeTransformer) -> None:
    x = noise(2, 3, 7, 12)
    valid = torch.arange(7).expand(2, 3, 7) % 3 != 0
    flat = stack(x.flatten(0, 1), valid=valid.flatten(0, 1))
    close(stack(x, valid=valid).flatten(0, 1), flat)
    caches = stack.begin(2, 3)
    for t in range(7):
        output, caches = stack.step(x[:, :, t], caches, valid[:, :, t])
        close(output.flatten(0, 1), flat[:, t])
    assert caches[0].keys.shape == (2, 3, 3, WINDOW, 4)
    close(stack(x[0, 0]), stack(x)[0, 0])


def test_no_step_looks_at_one_that_is_not_valid(stack: TimeTransformer) -> None:
    x = noise(2, 8, 12)
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[:, :3] = False
    close(stack(x, valid=valid)[:, 3:], stack(x[:, 3:]))
    assert not torch.allclose(stack(x)[:, 3:], stack(x[:, 3:]))
    assert stack(x, valid=valid).isfinite().all()


def test_the_state_keeps_its_shape_and_the_input_its_state(reader: Any, grid: tuple[int, ...]) -> None:
    previous, actions = history(grid)
    state = reader.begin(2)
    before = tree_map(torch.clone, state)
    shapes = tree_map(lambda t: t.shape, state)
    _, after = reader.step(state, previous[:, 1], actions[:, 1])
    assert tree_map(lambda t: t.shape, after) == shapes
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(state), tree_leaves(before), strict=True))


def test_rows_of_a_state_go_on_alone(reader: Any, grid: tuple[int, ...]) -> None:
    previous, actions = history(grid, batch=4, steps=9)
    state = reader.begin(4)
    for t in range(6):
        state = reader.observe(state, previous[:, t], actions[:, t])
    rows = torch.tensor([3, 1])
    alone = stepped(reader, tree_map(lambda t: t[rows], state), previous[rows, 6:], actions[rows, 6:])
    close(alone, reader(previous, actions)[rows, 6:])


def test_readers_are_causal(reader: Any, grid: tuple[int, ...]) -> None:
    previous, actions = history(grid)
    before = reader(previous, actions)
    for change in (previous, actions):
        change[:, 4:] = (change[:, 4:] + 1) % 2
        after = reader(previous, actions)
        close(after[:, :4], before[:, :4])
        assert not torch.allclose(after[:, 4], before[:, 4])
        before = after


def test_what_was_not_seen_is_as_if_it_had_never_been(reader: Any, grid: tuple[int, ...]) -> None:
    previous, actions = history(grid, steps=7)
    nothing = previous.new_full((2, 3, *previous.shape[2:]), -1)
    longer = reader(torch.cat([nothing, previous], 1), torch.cat([actions.new_full((2, 3), -1), actions], 1))
    close(longer[:, 3:], reader(previous, actions))


def test_a_distant_frame_is_remembered(reader: Any, grid: tuple[int, ...]) -> None:
    """Two blocks of W frames hand on what happened 2 · (W − 1) frames ago, and nothing older."""
    previous, actions = history(grid, steps=12)
    before = reader(previous, actions)[:, 11]
    changed = previous.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 9
    assert (reader(changed, actions)[:, 11] - before).abs().max() > 1e-8
    changed = previous.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 9
    close(reader(changed, actions)[:, 11], before)


def test_contexts_differ_where_the_codes_around_a_position_do() -> None:
    torch.manual_seed(0)
    spec = GridSpec((4, 4), torch.randn(9, 3), ("left", "right"))
    trunk = spread_out(FrameTransformer(spec, width=8, blocks=1, heads=2, model=8, embed=4))
    x = noise(1, 8)
    grid = torch.zeros(1, 4, 4, dtype=torch.int64)
    changed = grid.clone()
    changed[0, 0, 0] = 5
    touched = (trunk._contexts(x, grid) - trunk._contexts(x, changed)).abs().amax(-1)[0].nonzero().flatten()
    assert touched.tolist() == [0, 1, 4, 5]


def test_every_parameter_learns(reader: Any, grid: tuple[int, ...]) -> None:
    output = reader(*history(grid, steps=9), first=4)
    (output * noise(*output.shape)).sum().backward()
    assert not [name for name, p in reader.named_parameters() if p.grad is None or not p.grad.any()]


def test_it_learns_to_recall_beyond_its_neighbours() -> None:
    """The first code of every row comes back five frames later; a memory of four frames could not know it."""
    torch.manual_seed(0)
    memory = TimeMemory(GridSpec((1, 2), torch.randn(4, 3), ("go",)), width=16, heads=2, window=8, embed=4)
    out = nn.Linear(16, 4)
    optimizer = torch.optim.Adam([*memory.parameters(), *out.parameters()], 1e-2)
    codes = torch.randint(0, 4, (256, 7, 1, 2), generator=torch.Generator().manual_seed(0))
    target, actions = codes[:, 1, 0, 0], torch.zeros(256, 7, dtype=torch.int64)
    for _ in range(60):
        loss = nn.functional.cross_entropy(out(memory(codes, actions, first=6)[:, 0]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: WindowedAttention(10, 4, 8), "width 10 cannot be shared by 4 heads"),
    ],
)
def test_wrong_shapes_are_named(build: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build()
