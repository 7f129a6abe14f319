"""What happens to the weights: AdamW or Muon on float32 masters, learning rate, averaging over time."""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

Decay = Literal["cosine", "linear", "none"]

MOST_PADDING = 5
"""Numbers in padded matrices for each number in the matrices themselves. Matrices of all shapes take about as many
kernels as those of one, and kernels cost more than products of matrices of these sizes."""


def learning_rate_factor(step: int, progress: float, warmup_steps: int, decay: Decay) -> float:
    """Factor in [0, 1] of the learning rate: linear warm-up by steps, then decay to zero by progress in [0, 1].

    Progress may come from a clock, so that a time budget ends with an annealed model whatever the machine.
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    progress = min(max(progress, 0.0), 1.0)
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "none": 1.0}[decay]
    return rise * fall


def as_matrix(tensor: Tensor) -> Tensor:
    """A matrix or kernel as a 2-D view (outputs, rest) of the same memory, whatever the layout."""
    return tensor.flatten(1) if tensor.is_contiguous() else tensor.movedim(1, -1).flatten(1)


def hidden_weights(module: nn.Module) -> set[str]:
    """Names of the weights of linear and convolutional layers, save those that mark themselves ``keep_adam = True``.

    Muon is meant for these alone: embeddings, the layers that give logits, gains and biases stay with Adam.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    return {
        f"{name}.weight" if name else "weight"
        for name, child in module.named_modules()
        if isinstance(child, kinds) and not getattr(child, "keep_adam", False)
    }


class MasterOptimizer:
    """AdamW (Loshchilov and Hutter, 2019) whose arithmetic is in float32 whatever the precision of the parameters.

    A float32 parameter is its own master; one of lower precision has a float32 copy that collects the small updates
    that bfloat16 (8 bits of mantissa) would round away. Weight decay acts on matrices and kernels only, not on gains
    and biases.

    ``muon`` > 0 hands the hidden weights (:func:`hidden_weights`) to Muon (Jordan et al., 2024: momentum whose
    matrix is made orthogonal), at ``muon`` times the learning rate, its updates scaled to the size of Adam's (Liu et
    al., 2025).
    """

    def __init__(
        self, module: nn.Module, *, betas: tuple[float, float], weight_decay: float, clip: float | None, muon: float
    ):
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.parameters]
        self.clip, self.muon_factor = clip, muon
        hidden = hidden_weights(module) if muon > 0 else set()
        named = list(zip(self.names, self.masters, strict=True))
        others = [m for name, m in named if name not in hidden]
        groups = [
            {"params": [m for m in others if m.ndim >= 2], "weight_decay": weight_decay},
            {"params": [m for m in others if m.ndim < 2], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=True)
        # Views of the masters as matrices, which Muon updates in place.
        self.matrices = {name: nn.Parameter(as_matrix(m.detach())) for name, m in named if name in hidden}
        self.muon: BatchedMuon | None = None
        if matrices := self.matrices.values():
            self.muon = BatchedMuon(matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, learning_rate: float) -> Tensor:
        """One update from the gradients on the parameters, which are then cleared. Returns the gradient's norm, ()."""
        self._take_gradients()
        norm = nn.utils.clip_grad_norm_(self.masters, math.inf if self.clip is None else self.clip)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        if self.muon is not None:
            for name, master in zip(self.names, self.masters, strict=True):
                if name in self.matrices and master.grad is not None:
                    self.matrices[name].grad = as_matrix(master.grad)
            for group in self.muon.param_groups:
                group["lr"] = learning_rate * self.muon_factor
            self.muon.step()
            for matrix in self.matrices.values():
                matrix.grad = None
        for master in self.masters:
            master.grad = None
        self.publish()
        return norm

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Hand the gradients of the parameters to the masters."""
        copies: list[tuple[Tensor, Tensor]] = []
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None and (gradient.dtype != master.dtype or gradient.stride() != master.stride()):
                # The fused update walks memory in order: parameter and gradient must lie alike.
                copies.append((torch.empty_like(master), gradient))
                gradient = copies[-1][0]
            master.grad = gradient
        if copies:
            torch._foreach_copy_([to for to, _ in copies], [gradient for _, gradient in copies])

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the masters into the parameters that the module computes with."""
        pairs = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        if pairs:
            torch._foreach_copy_([p for p, _ in pairs], [m for _, m in pairs])

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name: ``parameter.*``, ``moment1.*``, ``moment2.*``, ``momentum.*``."""
        state: dict[str, Tensor] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            state[f"parameter.{name}"] = master.detach()
            moments = self.adam.state.get(master)
            if moments:
                state[f"moment1.{name}"] = moments["exp_avg"]
                state[f"moment2.{name}"] = moments["exp_avg_sq"]
                state[f"updates.{name}"] = moments["step"]
            if self.muon is not None and name in self.matrices and self.muon.state.get(self.matrices[name]):
                state[f"momentum.{name}"] = self.muon.state[self.matrices[name]]["momentum_buffer"]
        return state

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state`; names and shapes must have been checked."""
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(state[f"parameter.{name}"])
            if self.muon is not None and f"momentum.{name}" in state:
                momentum = state[f"momentum.{name}"].to(master.device, copy=True)
                self.muon.state[self.matrices[name]]["momentum_buffer"] = momentum
            if f"moment1.{name}" not in state:
                continue
            self.adam.state[master] = {
                "step": state[f"updates.{name}"].to(master.device, copy=True),
                "exp_avg": torch.empty_like(master).copy_(state[f"moment1.{name}"]),
                "exp_avg_sq": torch.empty_like(master).copy_(state[f"moment2.{name}"]),
            }
        self.publish()


class BatchedMuon(torch.optim.Muon):
    """:class:`torch.optim.Muon` with the same updates up to rounding. On a CPU, which gains nothing from batches, it
    is torch's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if any(p.device.type == "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, parameters, gradients, momenta)
            if not parameters:
                continue
            counts = collections.Counter(parameter.shape for parameter in parameters)
            stacks = {shape: parameters[0].new_empty(count, *shape) for shape, count in counts.items()}
            places = {shape: iter(stack) for shape, stack in stacks.items()}
            updates = [next(places[parameter.shape]) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            torch._foreach_copy_(updates, gradients)
            torch._foreach_lerp_(updates, momenta, group["momentum"] if group["nesterov"] else 1.0)
            _make_orthogonal(stacks, group)
            # The size of the updates is that of Adam's (``match_rms_adamw``).
            torch._foreach_mul_(updates, [-group["lr"] * 0.2 * math.sqrt(max(update.shape)) for update in updates])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates)
        return None


def _make_orthogonal(stacks: dict[torch.Size, Tensor], group: dict[str, Any]) -> None:
    """Replace matrices, stacked by shape, by orthogonal ones, in place."""
    for together in _joined({shape: len(stack) for shape, stack in stacks.items()}):
        counts = [len(stacks[shape]) for shape in together]
        size = max(min(shape) for shape in together), max(max(shape) for shape in together)
        padded = torch.zeros(sum(counts), *size, dtype=torch.bfloat16, device=stacks[together[0]].device)
        for rows, shape in zip(padded.split(counts), together, strict=True):
            _part(rows, shape).copy_(stacks[shape])
        result = orthogonal(padded, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for rows, shape in zip(result.split(counts), together, strict=True):
            stacks[shape].copy_(_part(rows, shape))


def _joined(counts: dict[torch.Size, int]) -> list[list[torch.Size]]:
    """Shapes that are padded with zeros to a common one, the largest first; zeros do not change the result."""
    groups: list[list[torch.Size]] = []
    rows = columns = members = volume = 0
    for shape in sorted(counts, key=lambda shape: -shape.numel()):
        rows, columns = max(rows, min(shape)), max(columns, max(shape))
        members, volume = members + counts[shape], volume + counts[shape] * shape.numel()
        if not groups or rows * columns * members > MOST_PADDING * volume:
            groups.append([])
            rows, columns = min(shape), max(shape)
            members, volume = counts[shape], counts[shape] * shape.numel()
        groups[-1].append(shape)
    return groups


def _part(padded: Tensor, shape: torch.Size) -> Tensor:
    """The matrices of a shape (r, c) in padded ones that have at least as many columns as rows."""
    rows, columns = shape
    return padded[:, :columns, :rows].mT if rows > columns else padded[:, :rows, :columns]


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices (M, r, c), r ≤ c, bfloat16 → their zeroth powers by the Newton-Schulz iteration of Muon."""
    a, b, c = coefficients
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class WeightAverage:
    """Exponential moving average of the masters in float32; its decay warms up as min(decay, (1 + s) / (10 + s)).

    Buffers are not averaged: those that matter (codebooks) are moving averages already.
    """

    def __init__(self, optimizer: MasterOptimizer, decay: float):
        self.optimizer, self.decay = optimizer, decay
        self.averages = [master.detach().clone() for master in optimizer.masters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the masters as they are after the update ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        torch._foreach_lerp_(self.averages, list(self.optimizer.masters), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        return {f"average.{name}": a for name, a in zip(self.optimizer.names, self.averages, strict=True)}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for name, average in zip(self.optimizer.names, self.averages, strict=True):
            average.copy_(state[f"average.{name}"])

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Inside, the module computes with the averaged weights."""
        kept = [p.detach().clone() for p in self.optimizer.parameters]
        torch._foreach_copy_(list(self.optimizer.parameters), self.averages)
        try:
            yield
        finally:
            torch._foreach_copy_(list(self.optimizer.parameters), kept)
