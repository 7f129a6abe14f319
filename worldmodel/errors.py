"""The errors that commands report to the user. Each message is one line: the value, the choices, the remedy."""

from collections.abc import Sequence

MOST_NAMES = 40  # of a list of choices


class WorldModelError(Exception):
    """Base of all errors raised on purpose. Entry points print the message and exit with code 2."""


class ConfigError(WorldModelError):
    """A setting, flag or override that cannot be applied."""


class EnvError(WorldModelError):
    """An environment that is unknown, cannot be built, or does not fit (continuous actions, no image)."""


class DataError(WorldModelError):
    """A store or an episode that is missing, damaged or does not fit."""


class BusyError(DataError):
    """A store that another process is writing to, or a run that another process is training."""


class RunError(WorldModelError):
    """A run that is missing, unfinished or damaged."""


class UnknownActionError(WorldModelError):
    """A name of an action, or another word, that the data do not have."""

    def __init__(self, name: object, known: Sequence[str], what: str = "action"):
        more = f" and {len(known) - MOST_NAMES:,} more" if len(known) > MOST_NAMES else ""
        super().__init__(f"unknown {what} {str(name)!r}; choose {', '.join(known[:MOST_NAMES])}{more}")
