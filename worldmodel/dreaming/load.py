"""Loading of the model of a run of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel.dreaming.images import ImageModel
from worldmodel.runs.kind import Kind, kind_of_run
from worldmodel.world import Precision, WorldModel

if TYPE_CHECKING:
    from worldmodel.speech.voice import VoiceModel


def load_model(
    run: str | Path, device: str = "auto", precision: Precision = "auto"
) -> WorldModel | ImageModel | VoiceModel:
    """Load the model of a run.

    ``precision``: of a world model; other models compute in float32. Raises what :meth:`WorldModel.load` raises.
    """
    folder = Path(run)
    match kind_of_run(folder):
        case Kind.WORLD:
            return WorldModel.load(folder, device, precision)
        case Kind.IMAGES:
            return ImageModel.load(folder, device)
        case Kind.SPEECH:
            from worldmodel.speech.voice import VoiceModel  # an optional extra

            return VoiceModel.load(folder, device)
