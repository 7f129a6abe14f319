"""The gated PixelCNN as a head, over grids of codes, and as a decoder: a likelihood of frames given a map."""

import copy
import math
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.heads.base import GridSpec, Head, nats
from worldmodel.heads.sampling import make_sampler
from worldmodel.likelihoods.base import NUM_VALUES, Likelihood, LossAndFrames
from worldmodel.nn.modules import centred, wide
from worldmodel.nn.pixelcnn import GatedPixelCNN, GridState
from worldmodel.nn.slots import CodePixelCNN, SlotLogits
from worldmodel.util.ranges import Count, PassedTo


class SiteHead(Head):
    """A PixelCNN on grids of one size: every code depends on all codes before it in raster order, slots innermost."""

    stepwise = True  # a pass over 32×32 sites costs as much as sixty single positions

    def __init__(self, model: CodePixelCNN, sizes: tuple[int, int, int], vectors: Tensor):
        super().__init__()
        self.sizes, self.model = sizes, model  # (h, w, S)
        self.groups = [1] * math.prod(sizes)
        self.set_order(torch.arange(math.prod(sizes)))
        self.vectors = nn.Buffer(vectors, persistent=False)

    def condition(self, contexts: Tensor) -> Tensor:
        """contexts (B, N, width) → condition of the PixelCNN, (B, h, w, width): the context of a site's first slot."""
        return contexts[:, :: self.sizes[2]].unflatten(1, self.sizes[:2])

    def ordered_logits(self, codes: Tensor, contexts: Tensor) -> Tensor:
        return self.model(codes.unflatten(1, self.sizes), self.condition(contexts)).flatten(1, 3)

    def begin(self, contexts: Tensor) -> GridState:
        return self.model.network.begin(self.condition(contexts))

    def extend(self, state: GridState, codes: Tensor, start: int, stop: int) -> Tensor:
        return self.model.extend(state, codes, start, stop)


class PixelCNNHead(SiteHead):
    """A prior over grids of codes.

    Args:
        spec: of grids (h, w) or (h, w, S); (n,) is one row, or one site of n slots with their own codebooks, and
            (n, S) is then one row of sites.
        context_width: of the trunk's vectors.
        width: of the network. network: the other settings of :class:`~worldmodel.nn.pixelcnn.GatedPixelCNN`.
    """

    def __init__(
        self, spec: GridSpec, context_width: int, width: Count = 128, **network: Annotated[Any, PassedTo(GatedPixelCNN)]
    ):
        spec.require_one_grid(self, slots=True)
        grid, codebook = spec.grid, spec.codebook
        sizes: tuple[int, ...]
        if len(grid) == 1:  # a row of one codebook, or one site whose slots are a row
            sizes = (1, *grid, 1) if codebook.dim() == 2 else (1, 1, *grid)
        elif len(grid) == 2:
            sizes = (*grid, 1) if codebook.dim() == 2 else (1, *grid)
        else:
            sizes = tuple(grid)
        if len(sizes) != 3 or (codebook.dim() == 3 and len(codebook) != sizes[2]):
            mine = f"{tuple(grid)} with {len(codebook) if codebook.dim() == 3 else 1}"
            reason = f"a PixelCNN draws grids (h, w), or (h, w, S) with one codebook or S of them; this grid is {mine}"
            raise ConfigError(f"{reason}; choose another head or tokenizer")
        books = codebook if codebook.dim() == 3 else codebook.expand(sizes[2], -1, -1)
        # Codes of different codebooks have no common geometry: temperature 0 then takes the most probable code.
        vectors = torch.eye(books.shape[1]) if codebook.dim() == 3 else centred(codebook)
        model = CodePixelCNN(books, context_width, width, **network)
        super().__init__(model, (sizes[0], sizes[1], sizes[2]), vectors)
        self.position = nn.Parameter(torch.randn(*sizes[:2], context_width) * 0.02)
        self.guess, self.guess_logits = nn.Linear(context_width, sizes[2] * width), SlotLogits(books, width)

    def condition(self, contexts: Tensor) -> Tensor:
        return super().condition(contexts) + self.position

    def forecast(self, contexts: Tensor) -> Tensor:
        x = F.silu(self.guess(self.condition(contexts).flatten(0, 2))).unflatten(-1, (self.sizes[2], -1))
        return wide(self.guess_logits(x)).reshape(*contexts.shape[:2], -1)


class PixelHead(SiteHead):
    """The PixelCNN of a decoder on frames of one size, for the samplers. Its forecast is uniform."""

    def forecast(self, contexts: Tensor) -> Tensor:
        return contexts.new_zeros(*contexts.shape[:2], len(self.vectors))


class PixelCNNLikelihood(Likelihood):
    """p(frame | a map of the same size), autoregressive over sub-pixels in raster order, channels innermost.

    Args:
        channels: C of a frame. outputs: channels of the map that the decoder has to give.
        num_values: K of a sub-pixel, evenly spaced over [-1, 1].
        width: of the network. network: the other settings of :class:`~worldmodel.nn.pixelcnn.GatedPixelCNN`.
    """

    keep_float32 = False  # it may be trained in bfloat16; values are drawn by a float32 copy

    def __init__(
        self,
        channels: int,
        outputs: Count = 64,
        num_values: Count = 256,
        width: Count = 64,
        **network: Annotated[Any, PassedTo(GatedPixelCNN)],
    ):
        super().__init__(channels)
        self.outputs, self.num_values = outputs, num_values
        self.exact = num_values == NUM_VALUES  # with fewer values, frames are rounded
        values = torch.linspace(-1, 1, num_values)
        self.vectors = centred(values[:, None])
        # Cosines of several frequencies: near values have similar initial vectors, and distant ones differ.
        waves = torch.cos(torch.pi / 2 * (values + 1)[:, None] * torch.arange(1, 9)) / torch.arange(1, 9)
        self.model = CodePixelCNN(waves.expand(channels, -1, -1), outputs, width, **network)
        self.heads: dict[tuple[int, int], PixelHead] = {}  # by the size of frames; made when one is drawn

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """outputs (B, outputs, H, W), frames (B, C, H, W) float in [-1, 1] → (B, C, H, W) nats of their values."""
        codes = self._codes(frames)
        return -nats(self.model(codes, outputs.movedim(1, -1)), codes).movedim(-1, 1)

    def _codes(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) → values (B, H, W, C) int64."""
        scaled = (frames.float() + 1) * ((self.num_values - 1) / 2)
        return scaled.round().clamp(0, self.num_values - 1).long().movedim(1, -1)

    def loss_and_frames(self, outputs: Tensor, frames: Tensor) -> LossAndFrames:
        codes = self._codes(frames)
        logits = self.model(codes, outputs.movedim(1, -1))
        values = torch.linspace(-1, 1, self.num_values, device=logits.device)
        expected = logits.detach().float().softmax(-1) @ values
        return LossAndFrames(nats(logits, codes).mean(), expected.movedim(-1, 1))

    def mean(self, outputs: Tensor) -> Tensor:
        """outputs (B, outputs, H, W) → (B, C, H, W) in [-1, 1]: a deterministic frame, in which every sub-pixel is the
        value nearest to its expectation given those before it. (The expected frame would be a sum over all frames.)
        """
        return self._draw(outputs, 0.0, None)

    def sample(self, outputs: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """outputs (B, outputs, H, W) → frames drawn from the distribution, (B, C, H, W) in [-1, 1]."""
        return self._draw(outputs, temperature, generator)

    @torch.no_grad()
    def _draw(self, outputs: Tensor, temperature: float, generator: Generator | None) -> Tensor:
        head = self._head((outputs.shape[2], outputs.shape[3])).to(outputs.device)
        contexts = outputs.movedim(1, -1).flatten(1, 2).repeat_interleave(head.sizes[2], 1)
        kind = next(head.model.parameters()).dtype
        learning = head.model.training
        head.model.eval()  # without dropout
        codes, _ = make_sampler("auto", temperature).sample(head, contexts.to(kind), generator)
        head.model.train(learning)
        return codes.unflatten(1, head.sizes).movedim(-1, 1).float() * (2 / (self.num_values - 1)) - 1

    def _head(self, size: tuple[int, int]) -> PixelHead:
        """The PixelCNN on frames of a size, always in float32, since it decides on values."""
        model = self.model
        if next(model.parameters()).dtype == torch.bfloat16:
            return PixelHead(copy.deepcopy(model).float().eval(), (*size, model.slots), self.vectors)
        if size not in self.heads:
            self.heads[size] = PixelHead(model, (*size, model.slots), self.vectors)
        return self.heads[size]
