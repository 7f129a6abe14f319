"""The model of an images run, which draws images under a class or a caption; loading of a run of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from worldmodel.errors import RunError
from worldmodel.heads import make_sampler
from worldmodel.priors import LatentPrior
from worldmodel.runs.folder import PRIOR, load_spec
from worldmodel.runs.kind import Kind, check_kind, kind_of_run
from worldmodel.runs.models import check_trained, load_autoencoder, load_prior, resolve_device
from worldmodel.tokenizers import Autoencoder
from worldmodel.tokenizers.base import FRAMES_AT_A_TIME
from worldmodel.types import Spec
from worldmodel.util.files import expanded
from worldmodel.world import Precision, WorldModel

if TYPE_CHECKING:
    from worldmodel.speech.voice import VoiceModel


class Samples(NamedTuple):
    """Independent samples of images."""

    frames: Tensor  # (B, C, *size) uint8, on the host
    passes: float  # of the prior a frame, mean over the batch


class ImageModel:
    """A trained autoencoder of images and its prior, if any."""

    def __init__(self, spec: Spec, model: Autoencoder, prior: LatentPrior | None = None):
        self.spec, self.model = spec, model.eval()
        self.prior = None if prior is None else prior.eval()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def sees_classes(self) -> bool:
        """Whether there are several classes and the prior is conditioned on them."""
        return len(self.spec.action_names) > 1 and (self.prior is None or self.prior.sees_actions)

    def condition(self, name: str) -> int:
        """The index of a class or of a caption; a prior that reads words accepts new captions.

        Raises :class:`UnknownActionError` for a name, or a word of a caption, that the data do not have.
        """
        return self.spec.action_index(name) if self.prior is None else self.prior.condition_index(name)

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> ImageModel:
        """Load a run; the prior is None when it is not trained yet.

        Raises as :meth:`WorldModel.load` does.
        """
        folder, where = expanded(run), resolve_device(device)
        check_kind(folder, Kind.IMAGES)
        model = load_autoencoder(folder, where)
        prior = load_prior(folder, model, where) if check_trained(folder, PRIOR) else None
        return cls(load_spec(folder), model, prior)

    @torch.no_grad()
    def sample(
        self,
        conditions: Tensor | Sequence[str],
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        sampler: str = "auto",
    ) -> Samples:
        """Images of some classes, (B,) indices (−1 for none) or B names.

        Raises :class:`RunError` without a trained prior, :class:`UnknownActionError` for an unknown name,
        :class:`ConfigError` for ``top_k`` without codes.
        """
        if self.prior is None:
            raise RunError("the run has no trained prior yet; continue with python -m worldmodel.train")
        if not isinstance(conditions, Tensor):
            conditions = torch.tensor([self.condition(name) for name in conditions])
        conditions = conditions.to(self.device)
        how = make_sampler(sampler, temperature, top_k)
        prior, parts = self.prior, conditions.split(FRAMES_AT_A_TIME)
        steps = [prior.step(prior.begin(len(part)), part, how, generator)[0] for part in parts]
        passes = float(torch.stack([step.passes for step in steps]).mean())
        return Samples(self.model.decode(torch.cat([step.codes for step in steps])).cpu(), passes)


def load_model(
    run: str | Path, device: str = "auto", precision: Precision = "auto"
) -> WorldModel | ImageModel | VoiceModel:
    """Load the model of a run.

    ``precision``: of a world model; other models compute in float32. Raises what :meth:`WorldModel.load` raises.
    """
    folder = expanded(run)
    match kind_of_run(folder):
        case Kind.WORLD:
            return WorldModel.load(folder, device, precision)
        case Kind.IMAGES:
            return ImageModel.load(folder, device)
        case Kind.SPEECH:
            from worldmodel.speech.voice import VoiceModel  # an optional extra

            return VoiceModel.load(folder, device)
