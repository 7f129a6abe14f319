"""Is it right? Samplers, graphs and devices against each other."""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, smooth_frames
from worldmodel.heads import Ancestral, GridSpec, Head, Predictive, make_sampler
from worldmodel.heads.hierarchy import HierarchyHead
from worldmodel.heads.noise import counter_noise
from worldmodel.heads.pixelcnn import PixelCNNHead
from worldmodel.heads.transformer import TransformerHead
from worldmodel.training.optim import BatchedMuon


def environment(bench: Bench) -> None:
    """The versions and settings that the results depend on."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "cores": os.cpu_count()}
    if bench.device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(bench.device),
            "matmul": torch.backends.cuda.matmul.fp32_precision,
            "capability": torch.cuda.get_device_capability(bench.device),
        }
    bench.add("environment", **facts)


def heads(bench: Bench) -> Iterator[tuple[str, Head, Tensor]]:
    """Heads of every kind with contexts of 16 grids."""
    torch.manual_seed(0)
    codes, width, side = (16, 16, 4) if bench.tiny else (512, 128, 8)
    levels = ((side // 2, side // 2), (side, side))
    one = GridSpec((side, side), torch.randn(codes, 32))
    inner = functools.partial(TransformerHead, width=64)
    made: dict[str, Head] = {
        "transformer": TransformerHead(one, width),
        "pixelcnn": PixelCNNHead(one, width, 64, layers=4),
        "slots": PixelCNNHead(GridSpec((4, 4, 5), torch.randn(5, codes, 16)), width, 64, layers=3),
        "hierarchy": HierarchyHead(
            GridSpec((side * side * 5 // 4,), torch.randn(2, codes, 32), levels=levels), width, inner
        ),
    }
    for name, head in made.items():
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        contexts = torch.randn(16, len(head.order), width)
        yield name, head.eval().requires_grad_(False).to(bench.device), contexts.to(bench.device)


def differing(head: Head, contexts: Tensor, seed: int, *settings: Any) -> float:
    """Share of the codes that ancestral (by a graph) and predictive sampling draw differently."""
    one, two = (
        kind(*settings).sample(head, contexts, torch.Generator(contexts.device).manual_seed(seed))[0]
        for kind in (Ancestral, Predictive)
    )
    return float((one != two).float().mean())


def samplers(bench: Bench) -> None:
    """Both samplers draw the same codes, also where everything around them uses TF32."""
    for tf32 in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = tf32
        for name, head, contexts in heads(bench):
            for settings in ((1.0, None), (0.0, None), (1.0, 5)):
                seeds = range(2 if bench.tiny else 3)  # the second call records, the third replays
                wrong = max(differing(head, contexts, seed, *settings) for seed in seeds)
                bench.add("samplers", head=name, around=tf32, temperature=settings[0], top_k=settings[1], wrong=wrong)
    torch.backends.cuda.matmul.fp32_precision = "none"


def graphs(bench: Bench) -> None:
    """Recordings stay right when weights change or move, in inference mode, and on a device that is not current."""
    _, head, contexts = next(heads(bench))
    bench.add("graphs", case="first calls", wrong=max(differing(head, contexts, seed) for seed in range(3)))
    head.to("cpu").to(bench.device)
    bench.add("graphs", case="weights in other memory", wrong=max(differing(head, contexts, n) for n in range(3)))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05)
    bench.add("graphs", case="other weights in place", wrong=differing(head, contexts, 3))
    wrong = []
    for seed in range(4):
        with torch.inference_mode(seed % 2 == 0):
            wrong.append(differing(head, contexts[:7], seed))
    bench.add("graphs", case="inside and outside of inference mode, fewer rows", wrong=max(wrong))
    if bench.device.type == "cuda" and torch.cuda.device_count() > 1:
        head, contexts = head.to("cuda:1"), contexts.to("cuda:1")
        wrong = [differing(head, contexts, seed) for seed in range(3)]
        bench.add("graphs", case="cuda:1 while cuda:0 is current", wrong=max(wrong))


def against_the_cpu(bench: Bench) -> None:
    """The same weights on both devices: noise from counters, codes of the encoder and of dreams, decoded frames."""
    keys, shape = torch.arange(8 if bench.tiny else 64), (8 if bench.tiny else 64, 64, 512)
    noise = counter_noise(keys.to(bench.device), shape).cpu()
    bench.add("against_the_cpu", what="noise from counters", wrong=float((noise != counter_noise(keys, shape)).sum()))
    here, there = bench.world(precision="fp32", device=torch.device("cpu")), bench.world(precision="fp32")
    x = torch.from_numpy(smooth_frames(16 if bench.tiny else 256))
    mine = here.tokenizer.encode(x)
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # it must not matter
    whole = there.tokenizer.encode(x.to(bench.device)).cpu()
    parts = torch.cat([there.tokenizer.encode(part.to(bench.device)) for part in x.split(5)]).cpu()
    torch.backends.cuda.matmul.fp32_precision = "none"
    frames = [world.tokenizer.decode(mine.to(world.device)).cpu().int() for world in (here, there)]
    bench.add(
        "against_the_cpu",
        what="tokenizer",
        codes_apart=float((whole != mine).float().mean()),
        codes_apart_by_batch=float((parts != whole).float().mean()),
        intensities_apart=int((frames[0] - frames[1]).abs().max()),
    )
    drawn = []
    for world in (here, there):
        seen = x[None, :4].expand(8, -1, -1, -1, -1).to(world.device)
        state = world.observe(seen, torch.zeros(8, 4, dtype=torch.int64, device=world.device))
        codes = []
        for step in range(6):
            keys = torch.arange(8, device=world.device) + 100 * step
            imagined, state = world.step(state, torch.full_like(keys, step % 3), make_sampler(), keys)
            codes.append(imagined.codes.cpu())
        drawn.append(torch.stack(codes))
    bench.add("against_the_cpu", what="dream of six frames", codes_apart=float((drawn[0] != drawn[1]).float().mean()))


def muon(bench: Bench) -> None:
    """Matrices in batches are updated as torch updates single ones, up to the rounding of bfloat16."""
    torch.manual_seed(0)
    shapes = [(128, 1152)] * 6 + [(128, 384)] * 9 + [(256, 128)] * 5 + [(64, 64)]
    first, gradients = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    results, spent = [], []
    for kind in (torch.optim.Muon, BatchedMuon):
        parameters = [torch.nn.Parameter(value.clone().to(bench.device)) for value in first]
        optimizer = kind(parameters, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.to(bench.device)
        optimizer.step()
        results.append([parameter.detach().cpu() - start for parameter, start in zip(parameters, first, strict=True)])
        spent.append(1e3 * bench.seconds(optimizer.step))
    apart = max(float((one - two).norm() / one.norm()) for one, two in zip(*results, strict=True))
    bench.add("muon", relative_difference=apart, single_ms=spent[0], batched_ms=spent[1], wrong=float(apart > 0.05))
