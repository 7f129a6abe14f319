"""Processes that run one function of a module and are connected to this one by two pipes."""

import contextlib
import multiprocessing
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_executable
from typing import NamedTuple

PROGRAM = """
import importlib, os, sys
from multiprocessing.connection import Connection

results = Connection(int(sys.argv[1]), readable=False)
control = Connection(int(sys.argv[2]), writable=False)
for pipe in (results, control):
    os.set_inheritable(pipe.fileno(), False)
module, function = sys.argv[3:]
del sys.argv[1:]
sys.path[:] = control.recv()
getattr(importlib.import_module(module), function)(results, control)
"""
STANDARD_ERROR = 2


class Child(NamedTuple):
    """A running process."""

    process: subprocess.Popen[bytes]
    results: Connection  # what it sends; this pipe ends with the process
    control: Connection  # what it receives


def start(module: str, function: str, own_group: bool = False, stdout: int = STANDARD_ERROR) -> Child:
    """Start ``function(results, control)`` of a module, which receives by ``control`` and sends by ``results``.

    Unlike a process of :mod:`multiprocessing`, it never imports the user's script, which without a main guard would run
    again. What it prints goes to ``stdout``. With ``own_group``, it leads a process group, which Ctrl-C does not reach.
    """
    results, their_results = multiprocessing.Pipe(duplex=False)
    their_control, control = multiprocessing.Pipe(duplex=False)
    pipes = their_results.fileno(), their_control.fileno()
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    process = subprocess.Popen(  # no fork, which engines and threads do not survive
        [get_executable(), *flags, "-P", "-c", PROGRAM, *map(str, pipes), module, function],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        pass_fds=pipes,
        process_group=0 if own_group else None,
    )
    their_results.close()
    their_control.close()
    with contextlib.suppress(OSError):  # it has ended, which the other pipe shows
        control.send(sys.path)
    return Child(process, results, control)
