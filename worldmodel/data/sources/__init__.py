"""Sources of recorded data: what fills a store without playing an environment."""

from worldmodel.data.sources.base import Source, fill
from worldmodel.data.sources.cifar10 import CIFAR10
from worldmodel.data.sources.dmlab import Recordings
from worldmodel.data.sources.images import ImageFolder
from worldmodel.data.sources.minari import Minari
from worldmodel.data.sources.npz import Arrays
from worldmodel.data.sources.stores import Stores

__all__ = ["Arrays", "CIFAR10", "ImageFolder", "Minari", "Recordings", "Source", "Stores", "fill"]
