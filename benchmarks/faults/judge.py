"""What a fault did: the outcome of a command or of a reading function compared with that without the fault."""

import contextlib
import enum
import io
import logging.handlers
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from worldmodel.config.entry_point import message_of

Facts = Mapping[str, str]  # what was read, by name: the digests of episodes, codes or weights


class Outcome(enum.StrEnum):
    """Effect of a fault; the value heads a column of the table."""

    SAME = "same result"  # as without the fault
    REFUSED = "one clear error"
    REPORTED = "left out, reported"  # the damaged part; everything else is the same
    UNCHECKED = "other values"  # of a format without a checksum, which are as good as any
    SKIPPED = "skipped"  # not possible on this machine
    LOST = "lost"  # a traceback, a wrong result, lost data


class Result(NamedTuple):
    """Of one fault."""

    part: str  # a row of the table
    outcome: Outcome
    detail: str = ""


def judge(part: str, fault: str, read: Callable[[], Facts], wanted: Facts, checked: bool = True) -> Result:
    """Compare what is read with what is wanted. ``checked``: whether the format has a checksum."""
    try:
        with captured() as reports:
            found = read()
    except Exception as error:
        message = message_of(error)
        if message is None:
            place = traceback.extract_tb(error.__traceback__)[-1]
            detail = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            return Result(part, Outcome.LOST, f"{fault}: {detail}")
        clear = bool(message) and "\n" not in message
        return Result(part, Outcome.REFUSED if clear else Outcome.LOST, f"{fault}: {message}")
    if found == wanted:
        return Result(part, Outcome.SAME)
    if reports and found.items() <= wanted.items():
        return Result(part, Outcome.REPORTED)
    return Result(part, Outcome.LOST if checked else Outcome.UNCHECKED, f"{fault}: silently another result")


@contextlib.contextmanager
def captured() -> Iterator[list[logging.LogRecord]]:
    """Nothing is printed; the value collects what the package logs."""
    logger, handler = logging.getLogger("worldmodel"), logging.handlers.BufferingHandler(capacity=1_000_000)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield handler.buffer
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def run_command(main: Callable[[list[str]], int], *words: object) -> tuple[int, str]:
    """The exit code and the standard error of a command in this process."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = main([str(word) for word in words])
    return code, errors.getvalue()


def one_line_error(code: int, errors: str) -> bool:
    """Whether a command reported one clear line and exit code 2."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    return code == 2 and len(lines) == 1 and "Traceback" not in errors
