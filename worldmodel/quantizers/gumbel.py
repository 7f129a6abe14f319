"""The Gumbel-softmax quantiser: codes are drawn from a distribution given the input, relaxed in training."""

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from worldmodel.nn.float32 import full_float32
from worldmodel.quantizers.base import Quantized, Quantizer, broadcast_first
from worldmodel.util.ranges import Count, NumCodes, Temperature


class GumbelQuantizer(Quantizer):
    """The discrete VAE of DALL·E (Ramesh et al., 2021, section 2.1 and appendix A.2).

    A linear layer makes K logits of the input (D), standardised by its mean and deviation in the first training batch:
    the initial outputs of an encoder have a large common offset, which would select the same few codes everywhere. In
    training the output is the mean of the table's vectors weighted by softmax((logits + Gumbel noise) / temperature)
    (Jang et al., 2017; Maddison et al., 2017); in evaluation it is the vector of the largest logit, and the input has
    no gradient.

    Args:
        num_codes: K.
        width: D, of the input and of the codes' vectors.
        start, end: initial and final temperature. anneal_steps: batches between them, on half a cosine.
        hard: in training the output is the vector of one drawn code, with the gradient of the weighted mean (straight
            through); else the weighted mean itself.

    The term ``kl`` is KL(q ‖ uniform) = ln K − H(q) in nats, a mean over the codes; alone it does not prevent that few
    codes are used. The term ``diversity`` is ln K − H(mean of q over the batch), of wav2vec 2.0 (Baevski et al., 2020,
    section 3.2): 0 when all codes are used equally. ``codes`` of the result are those of the largest logits, in
    training too, as :meth:`encode` gives them.
    """

    soft = True

    def __init__(
        self,
        num_codes: NumCodes,
        width: Count,
        start: Temperature = 1.0,
        end: Temperature = 1 / 16,
        anneal_steps: Count = 4000,
        hard: bool = False,
    ):
        super().__init__()
        if end > start:
            raise ValueError(f"the temperature must fall, not go from {start} to {end}")
        self.num_codes, self.width, self.hard = num_codes, width, hard
        self.start, self.end, self.anneal_steps = start, end, anneal_steps
        self.logits = nn.Linear(width, num_codes, bias=False)
        self.table = nn.Parameter(torch.randn(num_codes, width) / math.sqrt(width))
        self.offset, self.deviation = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))
        self.started = nn.Buffer(torch.zeros(()))  # 1 once these were measured
        self.known_started = False
        self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))  # training batches so far

    @property
    def temperature(self) -> Tensor:
        """Of the next training batch, ()."""
        done = (self.steps / self.anneal_steps).clamp(max=1)
        return self.end + (self.start - self.end) * (1 + torch.cos(math.pi * done)) / 2

    def _logits(self, vectors: Tensor) -> Tensor:
        """(..., D) → (..., K) float32, under autocast too."""
        with torch.autocast(vectors.device.type, enabled=False), full_float32(vectors.device):
            return self.logits((vectors.float() - self.offset) / self.deviation)

    def encode(self, vectors: Tensor) -> Tensor:
        return self._logits(vectors.detach()).max(-1).indices

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.table)

    def forward(self, vectors: Tensor, generator: Generator | None = None) -> Quantized:
        if self.training:
            self._start(vectors.detach().float().reshape(-1, self.width))
        logits = self._logits(vectors)
        codes = logits.detach().max(-1).indices
        shares = logits.log_softmax(-1)
        likely = shares.exp()
        mean = likely.flatten(0, -2).mean(0)
        most = math.log(self.num_codes)  # the entropy of equally frequent codes
        losses = {"kl": most + (likely * shares).sum(-1).mean(), "diversity": most + torch.xlogy(mean, mean).sum()}
        if not self.training:
            return Quantized(self.lookup(codes), codes, losses)
        weights = ((shares + self._noise(shares, generator)) / self.temperature).softmax(-1)
        self.steps.add_(1)
        if self.hard:
            weights = weights + (F.one_hot(weights.detach().max(-1).indices, self.num_codes) - weights).detach()
        with torch.autocast(vectors.device.type, enabled=False):
            return Quantized(weights @ self.table, codes, losses)

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        """Measure the inputs of the first training batch, (M, D); over several processes those of the first one."""
        self.known_started = self.known_started or bool(self.started.item())  # the host waits until it is known
        if self.known_started:
            return
        self.offset.copy_(broadcast_first(flat.mean(0)))
        self.deviation.copy_(broadcast_first(flat.std(0, correction=0)).clamp_(min=1e-5))
        self.started.fill_(1.0)
        self.known_started = True

    @staticmethod
    def _noise(like: Tensor, generator: Generator | None) -> Tensor:
        """Standard Gumbel noise: −ln of exponential noise. Drawn where the generator is."""
        device = generator.device if generator is not None else like.device
        noise = torch.empty(like.shape, device=device).exponential_(generator=generator)
        return noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_().neg_().to(like.device)
