"""The contract of priors, run on every file of configs/prior: causality, exact likelihood, stepping."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from tiny import PRIORS, random_segment, tiny_prior

from worldmodel.heads import GridSpec
from worldmodel.heads.base import nats
from worldmodel.heads.order import ORDERS, make_order
from worldmodel.heads.transformer import TransformerHead
from worldmodel.priors import Prior
from worldmodel.priors.prior import OutcomeHead, symexp, two_hot
from worldmodel.runs.models import load_weights
from worldmodel.training.checkpoint import save_tensors


@pytest.fixture(params=PRIORS)
def prior(request: pytest.FixtureRequest) -> Prior:
    return tiny_prior(request.param).double()


@pytest.fixture(params=[name for name in PRIORS if name not in ("captions", "codec", "pixelcnn", "speech")])
def prior_with_past(request: pytest.FixtureRequest) -> Prior:
    """Those that are shown earlier frames; an image has none, and sound begins with nothing."""
    return tiny_prior(request.param).double()


@pytest.fixture
def plain_prior(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> Prior:
    """One whose memory, if it recalls by poses, counts in a dream as in training (``emphasis`` 1)."""
    pose = getattr(prior.trunk, "pose", None)
    if pose is not None:
        monkeypatch.setattr(pose, "emphasis", torch.ones_like(pose.emphasis))
    return prior


def stepped_contexts(prior: Prior, codes: torch.Tensor, actions: torch.Tensor, observed: int = 0) -> torch.Tensor:
    """The contexts of all steps, one frame at a time; the first ``observed`` ones by observe() alone."""
    state = prior.begin(len(codes))
    trunk, previous, contexts = state.trunk, state.previous, []
    for t in range(codes.shape[1]):
        if t < observed:
            trunk = prior.trunk.observe(trunk, previous, actions[:, t])
        else:
            context, trunk = prior.trunk.step(trunk, previous, actions[:, t])
            contexts.append(context)
        previous = codes[:, t]
    return torch.stack(contexts, 1)


@pytest.mark.parametrize("steps", [1, 3, 25])
def test_stepping_equals_one_full_pass(plain_prior: Prior, steps: int) -> None:
    segment = random_segment(steps=steps)
    full = plain_prior.contexts(segment.codes, segment.actions)
    stepped = stepped_contexts(plain_prior, segment.codes, segment.actions)
    torch.testing.assert_close(stepped, full, rtol=1e-9, atol=1e-9)


def test_observing_equals_stepping(plain_prior: Prior) -> None:
    segment = random_segment(steps=9)
    stepped = stepped_contexts(plain_prior, segment.codes, segment.actions)
    observed = stepped_contexts(plain_prior, segment.codes, segment.actions, observed=6)
    torch.testing.assert_close(observed, stepped[:, 6:], rtol=1e-9, atol=1e-9)


def test_a_step_after_recorded_frames_equals_the_full_pass(prior: Prior) -> None:
    """With the settings of its file: what a dream emphasises counts more only after dreamt frames."""
    segment = random_segment(steps=9)
    full = prior.contexts(segment.codes, segment.actions)
    for t in range(9):
        (context,) = stepped_contexts(prior, segment.codes[:, : t + 1], segment.actions[:, : t + 1], observed=t).unbind(
            1
        )
        torch.testing.assert_close(context, full[:, t], rtol=1e-9, atol=1e-9)


def test_leaving_out_the_first_contexts_changes_no_other(prior: Prior) -> None:
    segment = random_segment()
    full = prior.contexts(segment.codes, segment.actions)
    torch.testing.assert_close(prior.contexts(segment.codes, segment.actions, first=3), full[:, 3:])


def test_no_context_sees_its_own_frame_or_a_later_action(prior: Prior) -> None:
    segment = random_segment(steps=6)
    before = prior.contexts(segment.codes, segment.actions)
    codes, actions = segment.codes.clone(), segment.actions.clone()
    codes[:, 3:] = (codes[:, 3:] + 1) % 16
    actions[:, 4:] = (actions[:, 4:] + 1) % 3
    after = prior.contexts(codes, actions)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4], before[:, 4])


def test_the_action_that_leads_to_a_frame_reaches_its_context(prior: Prior) -> None:
    segment = random_segment(steps=4)
    actions = segment.actions.clone()
    actions[:, 3] = (actions[:, 3] + 1) % 3
    changed = prior.contexts(segment.codes, actions) - prior.contexts(segment.codes, segment.actions)
    assert changed[:, :3].abs().max() == 0
    assert changed[:, 3].abs().max() > 1e-3


def test_the_head_is_causal_in_its_order(prior: Prior) -> None:
    segment = random_segment(steps=1)
    codes, contexts = segment.codes.flatten(2)[:, 0], prior.contexts(segment.codes, segment.actions)[:, 0]
    before = prior.head.ordered_logits(codes, contexts)
    for position in (0, 5, 7, 15):
        changed = codes.clone()
        changed[:, position] = (changed[:, position] + 1) % 16
        after = prior.head.ordered_logits(changed, contexts)
        torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1])
        assert position == 15 or not torch.allclose(after[:, position + 1 :], before[:, position + 1 :])


def test_logits_and_likelihoods_are_in_raster_order(prior: Prior) -> None:
    segment, head = random_segment(steps=1), prior.head
    codes, contexts = segment.codes.flatten(2)[:, 0], prior.contexts(segment.codes, segment.actions)[:, 0]
    logits = head(codes, contexts)
    for position in (0, 5, 7, 15):
        changed = codes.clone()
        changed[:, position] = (changed[:, position] + 1) % 16
        differs = (head(changed, contexts) - logits).abs().amax((0, 2)) > 1e-9
        assert not differs[head.place <= head.place[position]].any()
    expected = nats(logits, codes).mean(-1)
    torch.testing.assert_close(head.mean_nats(codes, contexts), expected)


@pytest.mark.parametrize("gradients", [True, False])
def test_extending_behind_any_prefix_equals_the_full_pass(prior: Prior, gradients: bool) -> None:
    segment = random_segment(steps=1)
    codes, contexts = segment.codes.flatten(2)[:, 0], prior.contexts(segment.codes, segment.actions)[:, 0]
    full = prior.head.ordered_logits(codes, contexts)
    for cuts in ([0, 16], [0, 1, 2, 16], [0, 7, 9, 16], list(range(17))):
        with torch.set_grad_enabled(gradients):
            state = prior.head.begin(contexts)
            parts = [prior.head.extend(state, codes, a, b) for a, b in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", ["step", "replace", "load", "double"])
def test_drawing_looks_up_what_the_weights_of_now_say(change: str) -> None:
    head = tiny_prior("conv").head
    contexts = torch.randn(2, 16, head.enter_context.in_features, generator=torch.Generator().manual_seed(0))
    codes = random_segment(steps=1).codes.flatten(1)

    @torch.no_grad()
    def extended() -> torch.Tensor:
        return head.extend(head.begin(contexts), codes, 0, head.positions)

    before = extended()
    if change == "step":
        head.ordered_logits(codes, contexts).square().sum().backward()
        torch.optim.SGD(head.parameters(), 1e-3).step()
    elif change == "replace":
        head.enter_codes[0].weight.data = torch.randn_like(head.enter_codes[0].weight)
    elif change == "load":
        head.load_state_dict(tiny_prior("conv", spread=1.0).head.state_dict())
    else:
        head.double()
        contexts = contexts.double()
    after = extended()
    assert (change == "double") == torch.allclose(before.double(), after.double(), atol=1e-3)
    torch.testing.assert_close(after, head.ordered_logits(codes, contexts), rtol=1e-4, atol=1e-4)


def test_a_longer_extension_repairs_wrong_keys(prior: Prior) -> None:
    segment = random_segment(steps=1)
    codes, contexts = segment.codes.flatten(2)[:, 0], prior.contexts(segment.codes, segment.actions)[:, 0]
    wrong = codes.clone()
    wrong[:, 4:] = (wrong[:, 4:] + 1) % 16
    state = prior.head.begin(contexts)
    prior.head.extend(state, wrong, 0, 16)
    again = prior.head.extend(state, codes, 5, 16)
    torch.testing.assert_close(again, prior.head.ordered_logits(codes, contexts)[:, 5:], rtol=1e-9, atol=1e-9)


def test_the_likelihood_of_all_grids_sums_to_one() -> None:
    torch.manual_seed(0)
    head = TransformerHead(GridSpec((2, 2), torch.randn(3, 2)), 4, width=8, heads=2, embed=4).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    grids = torch.tensor(list(itertools.product(range(3), repeat=4)))
    logits = head(grids, torch.randn(1, 4, 4, dtype=torch.float64).expand(81, -1, -1)).double()
    chosen = logits.log_softmax(-1).gather(-1, grids[..., None]).squeeze(-1).sum(1)
    assert chosen.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert chosen.exp().max().item() > 3 / 81  # not flat: the sum says something


def test_log_likelihood_adds_up_the_codes(prior: Prior) -> None:
    segment = random_segment()
    logits = prior(segment.codes, segment.actions).double()
    each = logits.log_softmax(-1).gather(-1, segment.codes.flatten(2)[..., None]).squeeze(-1)
    torch.testing.assert_close(
        prior.log_likelihood(segment.codes, segment.actions).double(), each.sum(-1), rtol=1e-5, atol=1e-5
    )


def test_losses_leave_out_context_and_padding(prior: Prior) -> None:
    segment = random_segment()
    segment.valid[0, 6:] = False
    terms, metrics = prior.losses(segment)
    likelihood = prior.log_likelihood(segment.codes, segment.actions)
    nats = -float(torch.cat([likelihood[0, prior.context : 6], likelihood[1, prior.context :]]).detach().mean())
    assert float(terms["codes"].detach()) == pytest.approx(nats / 16, rel=1e-5)
    assert float(metrics["bits_per_frame"].detach()) == pytest.approx(nats / math.log(2), rel=1e-5)


def test_hidden_history_is_as_if_never_seen(prior_with_past: Prior) -> None:
    prior = prior_with_past
    prior.train()
    prior.forget = 1.0
    segment = random_segment(batch=50, steps=5)
    codes, actions = prior._forget(segment.codes, segment, torch.Generator().manual_seed(0))
    hidden = (codes == -1).flatten(2).all(-1).sum(1)
    assert set(hidden.tolist()) == {1, 2, 3}
    for row, count in enumerate(hidden.tolist()):
        assert torch.equal(codes[row, count:], segment.codes[row, count:])
        assert (actions[row, : count + 1] == -1).all()
        assert torch.equal(actions[row, count + 1 :], segment.actions[row, count + 1 :])


def test_corruption_touches_the_share_it_may_and_no_target(prior: Prior) -> None:
    segment = random_segment(batch=200, steps=5)
    prior.train()
    prior.corrupt, prior.confuse = 0.5, 0.0
    changed = (prior._disturb(segment.codes, torch.Generator().manual_seed(0)) != segment.codes).double()
    assert changed.mean().item() == pytest.approx(0.25 * 15 / 16, abs=0.02)  # one draw in 16 is the code itself
    assert 0.3 < changed.flatten(1).mean(1).max().item() < 0.6
    prior.eval()
    assert torch.equal(prior._disturb(segment.codes, None), segment.codes)


def test_confusion_replaces_columns_of_the_latest_frames_by_those_of_another_row(prior: Prior) -> None:
    segment = random_segment(batch=200, steps=5)
    prior.train()
    prior.confuse, prior.corrupt, prior.corrupt_recent, prior.lead = 0.5, 0.0, 2, 3
    codes = prior._disturb(segment.codes, torch.Generator().manual_seed(0))
    changed = codes != segment.codes
    assert torch.equal(codes.where(changed, -1), segment.codes.roll(1, 0).where(changed, -1))
    assert not changed[:, :1].any()  # frames before the latest two seen ones
    rows, columns = changed.flatten(1).any(1).double().mean().item(), changed.flatten(1, -2).any(1).double().mean()
    assert 0.35 < rows < 0.5 and 0.1 < columns < 0.25
    block = changed.flatten(1, -2).any(1).int()
    assert (block.diff(dim=1, prepend=torch.zeros(200, 1), append=torch.zeros(200, 1)).abs().sum(1) <= 2).all()
    prior.eval()
    assert torch.equal(prior._disturb(segment.codes, None), segment.codes)


def test_every_parameter_learns(prior: Prior) -> None:
    segment = random_segment(steps=6)
    terms, _ = prior.losses(segment)
    torch.stack([*terms.values()]).sum().backward()
    idle = [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_saved_and_loaded_bit_for_bit(prior: Prior, tmp_path: Path) -> None:
    segment = random_segment()
    save_tensors(tmp_path / "prior.safetensors", prior.state_dict())
    expected = prior.log_likelihood(segment.codes, segment.actions)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
    load_weights(prior, tmp_path / "prior.safetensors", "train first")
    assert torch.equal(prior.log_likelihood(segment.codes, segment.actions), expected)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("grid", [(4, 5), (8, 8), (7,), (1, 3), (21, 21), (16, 16), (1, 1)])
def test_an_order_visits_every_position_once_and_looks_at_groups_before(name: str, grid: tuple[int, ...]) -> None:
    order, size = make_order(name, grid), math.prod(grid)
    assert sorted(order.positions.tolist()) == list(range(size))
    assert sum(order.groups) == sum(order.phases) == size
    first = 0
    for count in order.groups:
        seen = order.neighbours[first : first + count]
        assert ((seen < first) | (seen == size)).all()
        first += count


def looks_at(name: str, grid: tuple[int, int], row: int, column: int) -> set[int]:
    """Raster indices that a cell looks at."""
    order = make_order(name, grid)
    near = order.neighbours[order.positions.tolist().index(row * grid[1] + column)]
    return set(order.positions[near[near < len(order.positions)]].tolist())


def test_raster_order_looks_at_what_a_pixelcnn_looks_at() -> None:
    assert make_order("raster", (4, 5)).positions.tolist() == list(range(20))
    assert looks_at("raster", (4, 5), 2, 2) == {2, 5, 6, 7, 8, 9, 10, 11}
    assert looks_at("raster", (4, 5), 1, 0) == {0, 1, 2}


def test_checkerboard_order_draws_the_light_squares_between_known_ones() -> None:
    order = make_order("checkerboard", (8, 8))
    assert order.groups == [*[1] * 32, 32]
    assert order.positions[:5].tolist() == [0, 2, 4, 6, 9]
    light = looks_at("checkerboard", (8, 8), 3, 4)  # its four neighbours stand already, and others further off
    assert {8 * 2 + 4, 8 * 3 + 3, 8 * 3 + 5, 8 * 4 + 4} <= light


def test_quincunx_order_draws_a_grid_from_coarse_to_fine_in_few_groups() -> None:
    order = make_order("quincunx", (8, 8))
    assert order.groups == [1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 16]
    assert order.positions[:8].tolist() == [0, 4, 32, 36, 18, 54, 22, 50]
    assert {18, 20, 34, 36} <= looks_at("quincunx", (8, 8), 3, 3)  # between four known ones
    assert {17, 18, 19, 25, 27, 33, 34, 35} <= looks_at("quincunx", (8, 8), 3, 2)  # all around it are known


def test_padding_before_an_episode_is_as_if_never_seen(prior_with_past: Prior) -> None:
    prior = prior_with_past
    segment = random_segment(steps=7)
    segment.valid[:, :4], segment.actions[:, :4] = False, -1
    terms, _ = prior.losses(segment)
    late = prior.log_likelihood(segment.codes[:, 4:], segment.actions[:, 4:])
    assert prior.context == 4
    assert float(terms["codes"].detach()) == pytest.approx(-float(late.detach().mean()) / 16, rel=1e-5)


def test_two_hot_keeps_the_mean() -> None:
    bins = symexp(torch.linspace(-8, 8, 65))
    values = torch.tensor([-0.0004, 0.0, 1.0, 0.3, -17.5, 100.0, float(bins[0]), float(bins[-1])])
    weights = two_hot(values, bins)
    assert ((weights > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(weights @ bins, values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(two_hot(torch.tensor([1e9]), bins) @ bins, bins[-1:])


def test_outcomes_learn_what_stands_in_the_codes() -> None:
    torch.manual_seed(0)
    head = OutcomeHead(torch.randn(8, 4), positions=4, context_width=4, width=16)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    codes, contexts = torch.randint(0, 8, (256, 4)), torch.randn(256, 4, 4)
    rewards, ends = (codes == 3).sum(1).float(), (codes == 5).any(1)
    for _ in range(200):
        reward_loss, end_loss = head.losses(head(contexts, codes), rewards, ends)
        (reward_loss.mean() + end_loss.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected, probability = head.expected(contexts, codes)
    assert (expected - rewards).abs().mean() < 0.1
    assert ((probability > 0.5) == ends).float().mean() > 0.97
