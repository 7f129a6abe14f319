"""Drawing and dreaming on a make-believe GPU: the codes of the CPU, in one graph, with one wait of the host a frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_cuda import Gpu, NotInCapture, WrongDevice
from test_sampling import head_and_contexts
from tiny import PRIORS, SPEC, frames, tiny_prior, tiny_tokenizer
from torch import Tensor

from worldmodel.heads import Ancestral, Predictive, make_sampler, sampling
from worldmodel.nn.float32 import full_float32
from worldmodel.nn.graphs import KEPT, GraphCache, Outputs, rounded_up
from worldmodel.priors import Prior, PriorState
from worldmodel.world import WorldModel

DREAMS = [name for name in PRIORS if name not in ("captions", "speech")]


def test_the_make_believe_gpu_is_as_strict_as_a_gpu() -> None:
    with Gpu() as gpu:
        x = torch.ones(3, device="cuda")
        with pytest.raises(WrongDevice):
            x + torch.ones(3)
        with pytest.raises(WrongDevice):
            torch.rand(3, device="cuda", generator=torch.Generator())
        with pytest.raises(NotInCapture), torch.cuda.graph(torch.cuda.CUDAGraph()):
            x.sum().item()
        with torch.inference_mode():
            y = x + 1
        with pytest.raises(RuntimeError, match="inference tensor"):
            y.add_(1)
        assert x.sum().item() == 3 and sum(gpu.waits.values()) == 1


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_graph_draws_what_single_kernels_draw(device: str) -> None:
    """Recorded under inference mode, replayed outside of it, with other noise, other weights and fewer rows; also on a
    device that is not the current one."""
    with Gpu(count=2) as gpu:
        head, contexts = head_and_contexts(8, torch.float32)
        head, contexts = head.to(device), contexts.to(device)
        for seed in range(4):
            rows = contexts[: 8 - seed % 3]
            with torch.inference_mode(seed < 2):
                drawn = [
                    kind().sample(head, rows, torch.Generator(device).manual_seed(seed))[0].cpu()
                    for kind in (Ancestral, Predictive)
                ]
            assert torch.equal(*drawn)
            with torch.no_grad():
                head.logits.bias.add_(torch.randn(512, device=device))
        assert len(gpu.captured) == 1 and gpu.replays == 3  # the first call is not recorded


def test_graphs_are_few() -> None:
    """Sizes are rounded up, and the least recently used recordings are dropped."""
    sizes = [rounded_up(n) for n in (0, 1, 3, 16, 33, 64, 65, 100, 1000, 1025)]
    assert sizes == [0, 1, 4, 16, 64, 64, 80, 112, 1024, 1280]
    with Gpu() as gpu:
        cache, module = GraphCache(), torch.nn.Linear(2, 3, device="cuda")

        def function(x: Tensor) -> Outputs:
            return Outputs((module(x), x.sum(1).long()), (x + 1,))

        def call(key: int, rows: int) -> None:
            x = torch.rand(rows, 2, device="cuda")
            with torch.no_grad():
                results, scratch = cache.call(module, key, function, [x])
                wanted = function(x)
            for one, two in zip((*results, *scratch), (*wanted.results, *wanted.scratch), strict=True):
                assert torch.equal(one.cpu(), two.cpu())

        for rows in (5, 8, 6, 7, 5):
            call(0, rows)
        assert len(gpu.captured) == 1 and gpu.replays == 4
        for key in [n for n in range(1, KEPT + 3) for _ in range(2)]:
            call(0, 8)  # used between the others, so that it is kept
            call(key, 8)
        assert sum(recording is not None for recording in cache.known[module].values()) == KEPT
        captures = len(gpu.captured)
        call(0, 8)
        assert len(gpu.captured) == captures
        module.weight.data = module.weight.data.clone()  # in other memory
        call(0, 8)
        call(0, 8)
        assert len(gpu.captured) == captures + 1


def steps(prior: Prior, device: str, source: Any, count: int = 4, temperature: float = 1.0) -> list[Tensor]:
    grids = torch.randint(0, 16, (5, *prior.grid), generator=torch.Generator().manual_seed(0)).to(device)
    actions, sampler = torch.tensor([0, 1, 2, 0, 1]).to(device), make_sampler("auto", temperature)
    state: PriorState = prior.observe(prior.begin(5), grids, actions)
    values = []
    for _ in range(count):
        with torch.no_grad():
            step, state = prior.step(state, actions, sampler, source)
        values += [step.codes.cpu(), step.rewards.cpu(), step.ends.cpu()]
    return values


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Equal codes, and outcomes that are equal up to rounding; rewards are means over bins of ±2,980."""
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two) if one.dtype == torch.int64 else torch.allclose(one, two, 1e-4, 2e-2)


@pytest.mark.parametrize("name", DREAMS)
@pytest.mark.parametrize("keyed", [False, True])
def test_every_prior_dreams_as_on_a_cpu(name: str, keyed: bool) -> None:
    keys = torch.arange(5)
    wanted = steps(tiny_prior(name), "cpu", keys if keyed else torch.Generator().manual_seed(0))
    with Gpu() as gpu:
        prior, device = tiny_prior(name).to("cuda"), "cuda"
        source: Any = keys.to(device) if keyed else torch.Generator(device).manual_seed(0)
        found = steps(prior, device, source)
        assert gpu.replays == 3 and len(gpu.captured) == 1, gpu.report()
        assert_equal(found, wanted)


@pytest.mark.parametrize(("keyed", "launches"), [(False, 5), (True, 4)])
def test_an_imagined_frame_waits_once_and_launches_little_beside_its_graph(keyed: bool, launches: int) -> None:
    with Gpu() as gpu:
        prior, sampler = tiny_prior().to("cuda"), make_sampler()
        source: Any = torch.arange(5).to("cuda") if keyed else torch.Generator("cuda")
        state, actions = prior.begin(5), torch.zeros(5, dtype=torch.int64, device="cuda")
        for _ in range(3):
            gpu.forget()
            with torch.no_grad():
                _, state = prior.step(state, actions, sampler, source)
        assert sum(gpu.waits.values()) == 1 and not gpu.uploads, gpu.report()
        assert sum(gpu.launches.values()) <= launches and gpu.replays == 1, gpu.report()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_near_ties_are_settled_in_the_results_of_a_graph(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a threshold so high that many codes are settled, the outcomes are those of the settled codes."""
    monkeypatch.setitem(sampling.TIE, torch.float32, 0.02)
    keys = torch.arange(5)
    wanted = steps(tiny_prior(), "cpu", keys, temperature=temperature)
    with Gpu():
        found = steps(tiny_prior().to("cuda"), "cuda", keys.to("cuda"), temperature=temperature)
    assert_equal(found, wanted)


def test_a_world_model_imagines_and_decodes() -> None:
    wanted = WorldModel(SPEC, tiny_tokenizer(), tiny_prior())
    seen, acts = frames(6).unflatten(0, (2, 3)), torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    dream = wanted.imagine(seen, acts, generator=torch.Generator().manual_seed(0))
    with Gpu():
        world = WorldModel(SPEC, tiny_tokenizer().to("cuda"), tiny_prior().to("cuda"))
        other = world.imagine(seen, acts, generator=torch.Generator("cuda").manual_seed(0))
        assert other.frames.device.type == "cuda" and torch.equal(other.frames.cpu(), dream.frames)
        assert torch.equal(other.codes.cpu(), dream.codes)


def test_what_decides_on_codes_is_computed_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the settings are, and they are the same afterwards."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    inside = []
    real = torch.nn.functional.conv2d

    def watched(*args: Any, **options: Any) -> Tensor:
        inside.append((matmul.fp32_precision, conv.fp32_precision))
        return real(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    try:
        matmul.fp32_precision = conv.fp32_precision = "tf32"
        with Gpu():
            tiny_tokenizer().to("cuda").encode(frames(2).to("cuda"))
            steps(tiny_prior("pixelcnn").to("cuda"), "cuda", None, 1)
        assert inside and set(inside) == {("ieee", "ieee")}
        assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "tf32")
        with full_float32(torch.device("cpu")):
            assert conv.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
