"""Sources of recorded speech."""

from worldmodel.speech.sources.corpora import TIMIT, VCTK

__all__ = ["TIMIT", "VCTK"]
