"""A second VQ-VAE that codes the grid of the first in a few codes, with an autoregressive decoder of the grid."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.heads.base import CodeEmbedding, GridSpec, Head, nats
from worldmodel.heads.sampling import Sampler, make_sampler
from worldmodel.likelihoods import SquaredError
from worldmodel.nn.convnets import CONV, ConvEncoder, ResidualBlock
from worldmodel.quantizers import Quantizer
from worldmodel.tokenizers.base import Reconstruction, Tokenizer
from worldmodel.util.ranges import Count, Counts, NumCodes, Weights, Whole


class GridVQVAE(nn.Module):
    """A VQ-VAE whose observation is a grid of codes, and whose decoder is a head: p(grid | its few codes).

    With three codes of 512 it is the second VQ-VAE of the paper (section 4.2): 27 bits for a whole scene.

    Args:
        tokenizer: the first tokenizer; gives the grid, K and the codebook. It is not kept.
        quantizer: constructor, called with ``num_codes``; its ``shape`` is the shape of the second grid, such as (3,).
        head: constructor of the decoder, as a prior's.
        num_codes: K of the second grid. widths: channels behind each halving of the grid. blocks: residual blocks.
        context: width of the vector that each position of the grid receives from the codes.
        loss_weights: of the terms of training; 1 where none is given.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        quantizer: Callable[..., Quantizer],
        head: Callable[..., Head],
        num_codes: NumCodes = 512,
        widths: Counts = (128, 128, 256),
        blocks: Whole = 2,
        context: Count = 64,
        loss_weights: Weights | None = None,
    ):
        super().__init__()
        self.loss_weights = dict(loss_weights or {})
        self.observed = tokenizer.grid
        codebook = tokenizer.codebook()
        if codebook.dim() != 2 or len(self.observed) != 2:
            raise ConfigError(f"a second stage needs a first with one grid of h×w codes, not {self.observed}")
        self.quantizer = quantizer(num_codes=num_codes)
        self.num_codes, self.grid = num_codes, self.quantizer.shape
        if not self.grid:
            raise ConfigError("a second stage needs a quantizer with slots, such as three: ProductQuantizer")
        rank = len(self.observed)
        self.embed = CodeEmbedding(codebook, widths[0])
        self.encoder = ConvEncoder(rank, widths[0], widths, blocks)
        with torch.no_grad():
            self.small = tuple(self.encoder(torch.zeros(1, widths[0], *self.observed)).shape[2:])
        cells = math.prod(self.small)
        self.project = nn.Linear(widths[-1] * cells, self.quantizer.width)
        self.unfold = nn.Linear(self.quantizer.width, widths[-1] * cells)
        enter, leave = ResidualBlock(rank, widths[-1], widths[-1]), CONV[rank](widths[-1], context, 3, padding=1)
        self.spread = nn.Sequential(enter, nn.ReLU(), leave)
        self.settle = nn.Sequential(*(ResidualBlock(rank, context, context) for _ in range(blocks)))
        self.position = nn.Parameter(torch.zeros(context, *self.observed))
        self.head = head(GridSpec(self.observed, codebook), context)

    def _vectors(self, grids: Tensor) -> Tensor:
        """(B, h, w) int64 → what is quantised, (B, D)."""
        return self.project(self.encoder(self.embed(grids).movedim(-1, 1)).flatten(1)).float()

    def _contexts(self, vectors: Tensor) -> Tensor:
        """(B, D) → contexts (B, N, width) of the head."""
        x = self.unfold(vectors.to(self.unfold.weight.dtype))  # the quantiser is always float32
        x = self.spread(x.unflatten(1, (-1, *self.small)))
        x = self.settle(F.interpolate(x, self.observed, mode="bilinear") + self.position)
        return x.flatten(2).movedim(1, -1)

    def forward(self, grids: Tensor, generator: Generator | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """grids (B, h, w) int64 → loss terms and the few codes (B, *grid).

        Terms: ``grid`` (nats per code of the first stage), ``forecast`` (the same of each code on its own) and those of
        the quantiser.
        """
        quantized = self.quantizer(self._vectors(grids), generator)
        codes = grids.flatten(1)
        guess = self.head.forecast(self._contexts(quantized.vectors.detach()))
        grid = self.head.mean_nats(codes, self._contexts(quantized.vectors)).mean()
        terms = {"grid": grid, "forecast": nats(guess, codes).mean()}
        return {**terms, **quantized.losses}, quantized.codes

    def encode(self, grids: Tensor) -> Tensor:
        """(B, h, w) → (B, *grid) int64."""
        return self.quantizer.encode(self._vectors(grids))

    @torch.no_grad()
    def nats(self, grids: Tensor) -> Tensor:
        """Exact −log p(grid | its codes) in nats, (B,)."""
        contexts = self._contexts(self.quantizer.lookup(self.encode(grids)))
        return self.head.mean_nats(grids.flatten(1), contexts) * math.prod(self.observed)

    @torch.no_grad()
    def decode(self, codes: Tensor, sampler: Sampler | None = None, generator: Generator | None = None) -> Tensor:
        """(B, *grid) → grids (B, h, w): the expected ones, unless a sampler at another temperature is given."""
        contexts = self._contexts(self.quantizer.lookup(codes))
        drawn, _ = (sampler or make_sampler(temperature=0.0)).sample(self.head, contexts, generator)
        return drawn.unflatten(1, self.observed)

    def codebook(self) -> Tensor:
        return self.quantizer.codebook().detach()


class Stacked(Tokenizer):
    """Two trained tokenizers as one: frame → grid → a few codes, and back. It is not trained itself."""

    def __init__(self, first: Tokenizer, second: GridVQVAE):
        super().__init__()
        self.first, self.second = first, second
        self.frame_shape, self.num_codes = first.frame_shape, second.num_codes
        self.grid = self.slots = second.grid
        self.likelihood = SquaredError(channels=first.frame_shape[0])

    def _forward(self, frames: Tensor, generator: Generator | None, conditions: Tensor | None) -> Reconstruction:
        codes = self._encode(frames)
        expected = self.expected_frames(codes)
        return Reconstruction(expected, codes, {"reconstruction": F.mse_loss(expected, frames)})

    def grid_nats(self, frames: Tensor) -> Tensor:
        return self.second.nats(self.first.encode(frames))

    def _encode(self, frames: Tensor) -> Tensor:
        return self.second.encode(self.first._encode(frames))

    def expected_frames(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        return self.first.expected_frames(self.second.decode(latents), conditions)

    def codebook(self) -> Tensor:
        return self.second.codebook()

    def reconstructions(self, frames: Tensor, generator: Generator | None = None) -> list[tuple[str, Tensor]]:
        grids = self.first.encode(frames)
        few = self.second.encode(grids)
        bits = f"{self.uniform_nats() / math.log(2):.0f} bits"
        drawn = self.second.decode(few, make_sampler(temperature=1.0), generator)
        first = "x".join(map(str, self.first.grid))  # the font of pictures has no ×
        return [
            (first, self.first.decode(grids)),
            (f"{bits}, expected", self.decode(few)),
            (f"{bits}, drawn", self.first.decode(drawn)),
        ]
