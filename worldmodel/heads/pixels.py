"""The gated PixelCNN as a decoder: a likelihood of frames given a map that another network made."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.heads.pixelcnn import SiteHead
from worldmodel.heads.sampling import make_sampler
from worldmodel.likelihoods.base import NUM_VALUES, Likelihood, LossAndFrames
from worldmodel.nn.embedding import centred
from worldmodel.nn.pixelcnn import GatedPixelCNN
from worldmodel.nn.slots import CodePixelCNN
from worldmodel.util.ranges import Count, PassedTo


class PixelHead(SiteHead):
    """A decoder's PixelCNN on frames of one size, for the samplers. It has no guess: all values are as likely."""

    def condition(self, contexts: Tensor) -> Tensor:
        return self.sites(contexts)

    def forecast(self, contexts: Tensor) -> Tensor:
        return contexts.new_zeros(*contexts.shape[:2], len(self.vectors))


class PixelCNNLikelihood(Likelihood):
    """p(frame | a map of the same size): each sub-pixel sees those before it in raster order, the channels of a pixel
    one after the other.

    Args:
        channels: C of a frame. outputs: channels of the map that the decoder has to give.
        num_values: K of a sub-pixel, evenly spaced over [-1, 1].
        width: of the network. network: the other settings of :class:`~worldmodel.nn.pixelcnn.GatedPixelCNN`.
    """

    keep_float32 = False  # it may learn in bfloat16; what decides on values is a float32 copy

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
        self.exact = num_values == NUM_VALUES  # fewer values are those of another picture
        values = torch.linspace(-1, 1, num_values)
        # Waves of several lengths: near values start out alike, and edges can be told.
        waves = torch.cos(torch.pi / 2 * (values + 1)[:, None] * torch.arange(1, 9)) / torch.arange(1, 9)
        self.model = CodePixelCNN(waves.expand(channels, -1, -1), outputs, width, **network)
        self.heads: dict[tuple[int, int], PixelHead] = {}  # by the size of frames; made when one is drawn

    def log_prob(self, outputs: Tensor, frames: Tensor) -> Tensor:
        """outputs (B, outputs, H, W), frames (B, C, H, W) float in [-1, 1] → (B, C, H, W) nats of their values."""
        codes = self._codes(frames)
        return -self._nats(self.model(codes, outputs.movedim(1, -1)), codes).movedim(-1, 1)

    @staticmethod
    def _nats(logits: Tensor, codes: Tensor) -> Tensor:
        """(B, H, W, C, K), (B, H, W, C) → (B, H, W, C)."""
        return F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none").view(codes.shape)

    def _codes(self, frames: Tensor) -> Tensor:
        """(B, C, H, W) → values (B, H, W, C) int64."""
        scaled = (frames.float() + 1) * ((self.num_values - 1) / 2)
        return scaled.round().clamp(0, self.num_values - 1).long().movedim(1, -1)

    def loss_and_frames(self, outputs: Tensor, frames: Tensor) -> LossAndFrames:
        codes = self._codes(frames)
        logits = self.model(codes, outputs.movedim(1, -1))
        values = torch.linspace(-1, 1, self.num_values, device=logits.device)
        expected = logits.detach().float().softmax(-1) @ values
        return LossAndFrames(self._nats(logits, codes).mean(), expected.movedim(-1, 1))

    def mean(self, outputs: Tensor) -> Tensor:
        """outputs (B, outputs, H, W) → (B, C, H, W) in [-1, 1]: the frame without chance, in which every sub-pixel is
        the value nearest to what is expected after those before it.

        The expected frame itself is a sum over all frames. This one takes as long as a sample.
        """
        return self._draw(outputs, 0.0, None)

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """outputs (B, outputs, H, W) → a frame of the distribution, (B, C, H, W) in [-1, 1]."""
        return self._draw(outputs, temperature, generator)

    @torch.no_grad()
    def _draw(self, outputs: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        size = (outputs.shape[2], outputs.shape[3])
        head = self._head(size).to(outputs.device)
        contexts = outputs.movedim(1, -1).flatten(1, 2).repeat_interleave(head.sizes[2], 1)
        kind = next(head.model.parameters()).dtype
        learning = head.model.training
        head.model.eval()  # without dropout
        codes, _ = make_sampler("auto", temperature).sample(head, contexts.to(kind), generator)
        head.model.train(learning)
        return codes.unflatten(1, head.sizes).movedim(-1, 1).float() * (2 / (self.num_values - 1)) - 1

    def _head(self, size: tuple[int, int]) -> PixelHead:
        """The PixelCNN on frames of a size; in float32, since it decides on values, whatever it was cast to."""
        model = self.model
        if next(model.parameters()).dtype == torch.bfloat16:
            return PixelHead(copy.deepcopy(model).float().eval(), (*size, model.slots), self._vectors())
        if size not in self.heads:
            self.heads[size] = PixelHead(model, (*size, model.slots), self._vectors())
        return self.heads[size]

    def _vectors(self) -> Tensor:
        return centred(torch.linspace(-1, 1, self.num_values)[:, None])
