"""Starts ViZDoom's engine so that it ends with its parent process and leaves no files.

ViZDoom runs its engine as a child process. By itself, it survives the death of its parent by SIGKILL or SIGTERM (and
ignores SIGTERM), writes ``_vizdoom/`` and ``_vizdoom.ini`` into the working directory, and leaves its shared memory
when it is killed. So the engine is started by a small guard, which asks the kernel to kill it when its parent dies and
moves it to a temporary directory. The directory and the names of the shared memory are removed as soon as both
processes have opened them. (If the process is killed before that, 20 kB remain.)
"""

from __future__ import annotations

import os
import re
import shlex
import struct
import sys
import tempfile
from pathlib import Path

import vizdoom

_MULTIPLAYER = {"cig", "multi_duel"}  # without a start for one player: ViZDoom ends the process

# Runs in the child before exec, in an isolated interpreter: 1 is PR_SET_PDEATHSIG, 9 is SIGKILL. The signal is sent
# when the parent's thread ends, which is ViZDoom's own and lives as long as the engine should. The process number
# shows whether the parent died before the call.
_GUARD = """
import ctypes, os, sys
folder, parent, engine = sys.argv[1:4]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(parent):
    sys.exit(1)
os.chdir(folder)
os.execv(engine, [engine, *sys.argv[4:]])
"""


def start(game: vizdoom.DoomGame) -> None:
    """Initialise a configured game with a guarded engine. Raises what ``DoomGame.init`` raises.

    Only on Linux the guard ends the engine with its parent; elsewhere it only keeps the working directory clean.
    """
    engine = Path(vizdoom.__file__).with_name("vizdoom")
    with tempfile.TemporaryDirectory(prefix="worldmodel-vizdoom-") as folder:
        guard = Path(folder, "engine")
        command = [sys.executable, "-ISc", _GUARD, folder, str(os.getpid()), str(engine)]
        guard.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        guard.chmod(0o700)
        game.set_vizdoom_path(str(guard))
        game.set_doom_config_path(os.devnull)  # the user's Doom settings must not change the frames
        game.init()
    _unlink_shared_memory(game.get_instance_id())


def stop(game: vizdoom.DoomGame) -> None:
    """Close the game, even if its engine died or was never started."""
    game.close()


def _unlink_shared_memory(instance: str) -> None:
    """Remove the names of the shared memory; the memory is freed when both processes have ended."""
    for kind in ("SM", "MQCtr", "MQDoom"):
        Path("/dev/shm", f"ViZDoom{kind}{instance}").unlink(missing_ok=True)


def scenarios() -> dict[str, Path]:
    """The bundled scenarios for one player: name → WAD, the file of its maps."""
    folder, games = Path(vizdoom.scenarios_path), Path(vizdoom.__file__).parent
    wads = {path.stem: path for path in [*folder.glob("*.wad"), *games.glob("freedoom*.wad")]}
    return {name: wads[name] for name in sorted(wads) if (folder / f"{name}.cfg").exists() and name not in _MULTIPLAYER}


def maps(wad: Path) -> list[str]:
    """Names of the maps in a WAD, in its order. With an unknown map the engine would wait forever."""
    with wad.open("rb") as file:
        _, count, offset = struct.unpack("<4sii", file.read(12))
        file.seek(offset)
        entries = struct.iter_unpack("<ii8s", file.read(16 * count))
    names = [name.rstrip(b"\0").decode("ascii", "replace") for _, _, name in entries]
    return [name for name in names if re.fullmatch(r"E\dM\d|MAP\d\d", name)]
