"""The WaveNet: causal, exact, and the same from queues as in one pass."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import Categorical, LogisticMixture, SquaredError
from worldmodel.likelihoods.base import frames_of, values_of
from worldmodel.nn.modules import inverse_cdf
from worldmodel.speech.nn.wavenet import WaveNetLikelihood
from worldmodel.speech.nn.wavenet_network import WaveNet

SMALL = {"width": 8, "layers": 4, "cycle": 3, "hidden": 8}
LIKELIHOODS = {"mixture": partial(LogisticMixture, components=3), "categorical": Categorical}


def make(group: int = 4, memory: int = 5, levels: str = "mixture") -> WaveNetLikelihood:
    torch.manual_seed(0)
    model = WaveNetLikelihood(1, 6, LIKELIHOODS[levels], group=group, memory=memory, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.double().eval()


def reach(model: WaveNet) -> int:
    """Receptive field in samples."""
    return (1 + sum(layer.dilation for layer in model.layers)) * model.group + model.group - 1


def signal(length: int, batch: int = 2) -> torch.Tensor:
    return frames_of(torch.randint(0, 256, (batch, 1, length))).double()


def choice(model: WaveNetLikelihood, parameters: torch.Tensor, noise: torch.Tensor, temperature: float) -> torch.Tensor:
    """Parameters (B, parameters) of one sample each and uniform noise (B, numbers) → sample values (B,)."""
    if isinstance(model.sample_likelihood, LogisticMixture):
        weights, means, scales = model.sample_likelihood.mixture(parameters)
        if temperature == 0:
            return values_of((weights.exp() * means).sum(-1))
        chosen = inverse_cdf((weights / temperature).softmax(-1), noise[:, :1])
        mean, scale = means.gather(1, chosen)[:, 0], scales.gather(1, chosen)[:, 0].exp()
        return values_of(mean + temperature * scale * torch.logit(noise[:, 1], eps=1e-6))
    if temperature == 0:
        return values_of(parameters.softmax(-1) @ model.model.waves[:, 0])
    return inverse_cdf((parameters / temperature).softmax(-1), noise)[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("levels", LIKELIHOODS)
@pytest.mark.parametrize(("group", "memory"), [(1, 1), (4, 5), (8, 3)])
def test_from_queues_every_sample_is_that_of_the_whole_pass(
    group: int, memory: int, levels: str, temperature: float
) -> None:
    model = make(group, memory, levels)
    outputs = torch.randn(3, 6, 80 // group, dtype=torch.float64)
    samples, noise = model.draw(outputs, torch.Generator().manual_seed(1), temperature)
    assert samples.shape == (3, 80) and (samples.unique().numel() > 10 or temperature == 0)
    found = model.distribution(outputs, frames_of(samples)[:, None])
    for at in range(80):  # that pass saw the samples before, and its choice is the sample that was drawn
        assert torch.equal(choice(model, found[:, :, at], noise[:, at], temperature), samples[:, at])


@pytest.mark.parametrize(("group", "memory"), [(1, 1), (4, 5), (8, 3)])
def test_a_sample_depends_on_what_came_before_it_and_nothing_else(group: int, memory: int) -> None:
    model = make(group, memory)
    frames, outputs = signal(64), torch.randn(2, 6, 64 // group, dtype=torch.float64)
    before = model.distribution(outputs, frames)
    for at in (0, 13, 40):
        changed = frames.clone()
        changed[:, :, at] = -changed[:, :, at]
        after = model.distribution(outputs, changed)
        differs = (after != before).any(1).any(0)
        assert not differs[: at + 1].any()
        assert differs[at + 1] and not differs[at + 1 + reach(model.model) :].any()


def test_the_reach_is_that_of_the_gradient() -> None:
    model = make(4, 5).model
    waves = model.waves[torch.randint(0, 256, (1, 200))].double().requires_grad_()
    levels = torch.zeros(1, 200, dtype=torch.int64)
    # The network as a function of waves: levels are looked up in a table, which is given a row for every sample.
    model.waves = torch.cat([waves[0], model.waves])
    levels[0] = torch.arange(200)
    import worldmodel.speech.nn.wavenet_network as module

    silence, module.SILENCE = module.SILENCE, 200 + 128
    try:
        found, _ = model(levels, torch.randn(1, 50, 6, dtype=torch.float64))
        (slope,) = torch.autograd.grad(found[0, 163].sum(), waves)
    finally:
        module.SILENCE = silence
    seen = slope[0].abs().sum(-1).nonzero()[:, 0]
    assert seen.max() == 162
    assert seen.min() == 163 - reach(model)


@pytest.mark.parametrize("levels", LIKELIHOODS)
def test_probabilities_of_a_sample_sum_to_one(levels: str) -> None:
    model = make(levels=levels)
    outputs, frames = torch.randn(1, 6, 2, dtype=torch.float64), signal(8, 1).expand(256, -1, -1).clone()
    frames[:, 0, 7] = frames_of(torch.arange(256)).double()
    nats = model.log_prob(outputs.expand(256, -1, -1), frames)
    assert nats.shape == (256, 1, 8)
    assert nats[:, 0, 7].exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_training_runs_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, outputs, frames = make(), torch.randn(2, 6, 10, dtype=torch.float64, requires_grad=True), signal(40)
    loss, expected = model.loss(outputs, frames), model.sample_likelihood.mean(model.distribution(outputs, frames))
    runs: list[object] = []
    whole = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda *given: runs.append(given) or whole(*given))
    studied = model.loss_and_frames(outputs, frames)
    assert len(runs) == 1 and studied.loss.requires_grad and not studied.frames.requires_grad
    assert torch.equal(studied.loss, loss) and torch.equal(studied.frames, expected)


def test_features_and_history_are_learnt() -> None:
    """Signals that go up or down as the features say, from wherever they are."""
    torch.manual_seed(0)
    model = WaveNetLikelihood(1, 2, LIKELIHOODS["mixture"], group=4, memory=4, **SMALL)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(400):
        turns = torch.randint(0, 2, (16, 8))
        moves = (turns * 2 - 1).repeat_interleave(4, 1) * 8
        levels = (moves.cumsum(1) + 128).clamp(0, 255)
        outputs = torch.nn.functional.one_hot(turns, 2).float().movedim(1, -1)
        loss = -model.log_prob(outputs, frames_of(levels)[:, None]).mean()
        if step == 0:
            start = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < start - 1
    turns = torch.tensor([[1, 1, 0, 1, 0, 0]])
    samples, _ = model.draw(
        torch.nn.functional.one_hot(turns, 2).float().movedim(1, -1), torch.Generator().manual_seed(0)
    )
    assert [int(part.sign()) for part in samples[0].diff()[3::4]] == [1, -1, 1, -1, -1]


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="signals of one channel, not of 3"):
        WaveNetLikelihood(3)
    with pytest.raises(ConfigError, match="choose LogisticMixture or Categorical"):
        WaveNetLikelihood(1, 4, SquaredError)
