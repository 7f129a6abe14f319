"""What every command does: it parses, composes the settings, calls its function and reports an error in one line.

:func:`entry_point` makes a command of a function ``main(args, config)``.
"""

import argparse
import contextlib
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from worldmodel.config.cli import AddFlags, Config, config_errors, one_line, parse
from worldmodel.errors import ConfigError, WorldModelError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

OUT_OF_MEMORY = re.compile(r"out of memory|(can't|cannot|unable to) allocate", re.IGNORECASE)
"""In the messages of torch on all devices; on a CPU, it raises a plain RuntimeError."""

Main = Callable[[argparse.Namespace, Config], None]


def run_entry_point(
    main: Main,
    command: str,
    description: str | None,
    add_flags: AddFlags = lambda parser: None,
    argv: Sequence[str] | None = None,
    operands: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
    sweeps: bool = False,
) -> int:
    """Parse and run; returns what :func:`exit_code` returns. ``sweeps``: the command has the flag ``--multirun``.

    Raises :class:`ConfigError` in a script that another command imports, because it must not go on.
    """
    if _imported_by_a_command():
        raise ConfigError(f"{command} is called by a script that another command imports; put it under if __name__ == "
                          "'__main__':, or the environment into a module of its own")  # fmt: skip

    words = list(sys.argv[1:] if argv is None else argv)
    if sweeps and "--multirun" in words and "--help" not in words:
        from worldmodel.config.sweep import sweep

        module = command if "." in command else f"worldmodel.{command}"
        return exit_code(lambda: sweep(module, words))

    def run() -> None:
        args, config = parse(argv, command, description, add_flags, operands, moved)
        if args.config:
            from omegaconf import OmegaConf

            print(OmegaConf.to_yaml(config), end="")
            return
        with _own_random_numbers():
            main(args, config)

    return exit_code(run)


def exit_code(run: Callable[[], None]) -> int:
    """Call a function and report its error: returns 0, 2 after a user's error (one line on stderr), 130 after Ctrl-C.

    Raises the error of a fault of the program.
    """
    try:
        run()
        return 0
    except BrokenPipeError:  # the reader of our output has ended, as in `… | head`
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; what was already written is kept, run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return EXIT_USER_ERROR


def _imported_by_a_command() -> bool:
    """Whether the caller's script is being imported, as the module of an environment, by a command or its recorder."""
    frame, importing = sys._getframe(2).f_back, False
    while frame is not None:
        importing |= frame.f_code.co_filename.startswith("<frozen importlib")
        if importing and frame.f_globals.get("__name__") in (__name__, "worldmodel.recording.pool"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leaves the global generators of the program around a command as they were; trainings, for one, seed them."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy and numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices) if torch else contextlib.nullcontext():
        try:
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.random.set_state(arrays)


def entry_point(
    command: str, description: str | None, add_flags: AddFlags = lambda parser: None, **more: Any
) -> Callable[[Main], Callable[..., int]]:
    """Decorates ``main(args, config)``: it becomes ``main(argv)``, which returns what :func:`run_entry_point` does."""
    return lambda main: lambda argv=None: run_entry_point(main, command, description, add_flags, argv, **more)


def message_of(error: Exception) -> str | None:
    """One line for an error that the user can remedy, or None for a fault of the program."""
    if isinstance(error, WorldModelError):
        return one_line(error)
    if isinstance(error, OSError) and error.errno is not None:
        # A full disk, a folder that may not be written: the system's reason and the file are what the user needs.
        where = f" ({error.filename})" if error.filename else ""
        return f"{os.strerror(error.errno)}{where}; what was already written is kept"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        remedy = "choose smaller settings, such as training.prior.batch or tokenizer.widths"
        return f"out of memory ({one_line(error)[:200]}); what was already written is kept: {remedy}"
    if isinstance(error, config_errors()):  # a setting that was not looked at before, such as one of an older run
        return f"the settings cannot be used: {one_line(error)}"
    return None
