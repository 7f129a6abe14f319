"""VQ-VAE-2: several grids of codes for one frame, each finer one given the coarser ones."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from worldmodel.errors import ConfigError
from worldmodel.likelihoods import Likelihood, SquaredError
from worldmodel.nn.convnets import CONV, ConvDecoder, ConvEncoder
from worldmodel.nn.modules import channels_last, dtype_of, module_list, to_channels_last, uniform
from worldmodel.quantizers import Quantizer
from worldmodel.tokenizers.base import Reconstruction, Tokenizer
from worldmodel.types import to_uint8
from worldmodel.util.ranges import Levels, NumCodes, ShareBelowOne, Weights, Whole


class VQVAE2(Tokenizer):
    """The hierarchy of Razavi, van den Oord, Vinyals, *Generating Diverse High-Fidelity Images with VQ-VAE-2* (2019).

    The codes of all levels stand in one row, the coarsest grid first: (B, N), N the sum of the levels' sizes.

    Args:
        frame_shape: (C, *size) of the observations.
        quantizer: constructor of a :class:`~worldmodel.quantizers.Quantizer`, called with ``num_codes`` for each level.
        widths: for every level, the finest first, the channels behind each of its halvings. The first list leads from
            the frame to the finest grid, each other one from a grid to the next coarser.
        blocks: residual blocks of every encoder and decoder.
        num_codes: K of every level. likelihood, loss_weights: as of the VQ-VAE.
        hide: share of the training frames of which the decoder receives the coarser grids alone (how many of them is
            drawn): the quantiser dropout of SoundStream (Zeghidour et al., 2021, section III.C), over levels. Without
            it, the fine grid has all information and the coarse one soon uses few of its codes.

    Raises :class:`ConfigError` when the size of the frames cannot be halved that often.
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        quantizer: Callable[..., Quantizer],
        widths: Levels,
        blocks: Whole = 2,
        num_codes: NumCodes = 512,
        likelihood: Callable[..., Likelihood] = SquaredError,
        hide: ShareBelowOne = 0.0,
        loss_weights: Weights | None = None,
    ):
        super().__init__(loss_weights)
        self.hide = hide
        channels, *size = frame_shape
        halvings = sum(map(len, widths))
        if len(widths) < 2 or any(extent % 2**halvings for extent in size):
            raise ConfigError(
                f"tokenizer.widths has {len(widths)} levels and {halvings} halvings; there must be two levels or more, "
                f"and {'×'.join(map(str, size))} be divisible by 2 that often"
            )
        rank = len(size)
        self.frame_shape, self.num_codes = tuple(frame_shape), num_codes
        grids = [tuple(extent // 2 ** sum(map(len, widths[: n + 1])) for extent in size) for n in range(len(widths))]
        self.grids = tuple(reversed(grids))
        self.grid = (sum(map(math.prod, grids)),)
        tops = [level[-1] for level in widths]
        # These modules and all below: the finest first.
        self.quantizers = module_list(quantizer(num_codes=num_codes) for _ in widths)
        if self.quantizers[0].shape or self.quantizers[0].soft:
            raise ConfigError("a level has one whole code at each place; choose a quantizer without slots or mixtures")
        width = self.quantizers[0].width
        ins = [channels, *tops[:-1]]
        self.encoders = nn.ModuleList(ConvEncoder(rank, i, level, blocks) for i, level in zip(ins, widths, strict=True))
        # From a level to the next finer one, beside the features of that level.
        self.show = nn.ModuleList(
            ConvDecoder(rank, width, tops[n], widths[n + 1], blocks) for n in range(len(widths) - 1)
        )
        read = [*(2 * top for top in tops[:-1]), tops[-1]]  # features, and on all levels but the coarsest what is shown
        self.project = module_list(CONV[rank](channels, width, 1) for channels in read)
        self.likelihood = likelihood(channels=channels)
        outputs = None if self.likelihood.outputs == channels else self.likelihood.outputs
        self.decoder = ConvDecoder(rank, width * len(widths), channels, widths[0], blocks, outputs)
        if rank == 2:
            to_channels_last(self)

    def _walk(self, frames: Tensor, choose: Callable[[int, Tensor], Tensor]) -> None:
        """From the coarsest level to the finest: ``choose(level, inputs of the quantiser (B, *grid, D))`` → vectors."""
        dtype = self.project[0].weight.dtype
        x, features = channels_last(frames, dtype), []
        for encoder in self.encoders:
            x = encoder(x)
            features.append(x)
        shown: Tensor | None = None
        for level in reversed(range(len(features))):
            seen = features[level] if shown is None else torch.cat([features[level], shown], 1)
            vectors = choose(level, self.project[level](seen).movedim(1, -1).float())
            if level:
                shown = self.show[level - 1](vectors.movedim(-1, 1).to(dtype))

    def _outputs(self, vectors: Sequence[Tensor]) -> Tensor:
        """Vectors (B, *grid, D) of all levels, the finest first → parameters of the likelihood, (B, outputs, *size)."""
        size = vectors[0].shape[1:-1]
        maps = [part.movedim(-1, 1).to(dtype_of(self.decoder)) for part in vectors]
        return self.decoder(torch.cat([maps[0], *(F.interpolate(part, size) for part in maps[1:])], 1))

    def _hidden(self, vectors: Sequence[Tensor], generator: Generator | None) -> list[Tensor]:
        """Vectors of all levels, the finest first, those of the finer levels of some frames replaced by zeros."""
        chance, depth = uniform((2, len(vectors[0])), vectors[0].device, generator)
        gone = (depth * (len(vectors) - 1)).long().add(1).masked_fill(chance >= self.hide, 0)  # finest levels not seen
        shape = (-1, *[1] * (vectors[0].dim() - 1))
        return [part * (gone <= level).view(shape) for level, part in enumerate(vectors)]

    def _forward(self, frames: Tensor, generator: Generator | None, conditions: Tensor | None) -> Reconstruction:
        found = {}

        def choose(level: int, vectors: Tensor) -> Tensor:
            found[level] = self.quantizers[level](vectors, generator)
            return found[level].vectors

        self._walk(frames, choose)
        vectors = [found[level].vectors for level in sorted(found)]
        outputs = self._outputs(self._hidden(vectors, generator) if self.training and self.hide else vectors)
        result = self.likelihood.loss_and_frames(outputs, frames)
        losses = {"reconstruction": result.loss}
        for name in found[0].losses:
            losses[name] = torch.stack([part.losses[name] for part in found.values()]).mean()
        codes = torch.cat([found[level].codes.flatten(1) for level in sorted(found, reverse=True)], 1)
        return Reconstruction(result.frames, codes, losses, self.trained_nats(losses))

    def _given(self, frames: Tensor, latents: Tensor, conditions: Tensor | None) -> Tensor:
        return -self.likelihood.log_prob(self._outputs(self._lookup(latents)), frames).flatten(1).sum(1)

    def _encode(self, frames: Tensor) -> Tensor:
        found: list[Tensor] = []

        def choose(level: int, vectors: Tensor) -> Tensor:
            found.append(self.quantizers[level].encode(vectors))
            return self.quantizers[level].lookup(found[-1])

        self._walk(frames, choose)
        return torch.cat([codes.flatten(1) for codes in found], 1)

    def expected_frames(self, latents: Tensor, conditions: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self._outputs(self._lookup(latents)))

    def _lookup(self, codes: Tensor) -> list[Tensor]:
        """Codes (B, N) → vectors (B, *grid, D) of the levels, the finest first."""
        parts = [part.unflatten(1, grid) for part, grid in zip(self.books(codes), self.grids, strict=True)]
        quantizers = reversed(self.quantizers)
        return [quantizer.lookup(part) for quantizer, part in zip(quantizers, parts, strict=True)][::-1]

    @torch.no_grad()
    def reconstructions(self, frames: Tensor, generator: Generator | None = None) -> list[tuple[str, Tensor]]:
        codes = self.encode(frames)
        if not self.hide:
            return [("reconstruction", self.decode(codes))]
        named = []
        for kept in range(1, len(self.grids) + 1):  # from the coarsest grids alone to all of them
            vectors = [part * (len(self.grids) - level <= kept) for level, part in enumerate(self._lookup(codes))]
            name = " + ".join("x".join(map(str, grid)) for grid in self.grids[:kept])
            named.append((name, to_uint8(self.likelihood.mean(self._outputs(vectors)))))
        return named

    def codebook(self) -> Tensor:
        """(levels, K, D), the coarsest first."""
        return torch.stack([quantizer.codebook().detach() for quantizer in reversed(self.quantizers)])

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        return self.grids

    def books(self, codes: Tensor) -> list[Tensor]:
        """Codes (B, N) → those of each level, (B, its positions), the coarsest first."""
        return list(codes.split([math.prod(grid) for grid in self.grids], 1))
