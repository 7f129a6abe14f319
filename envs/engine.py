"""A ViZDoom engine that dies with its owner and leaves nothing behind.

ViZDoom runs its engine as a child process. Left alone, that process survives the death of its parent by SIGKILL or
SIGTERM (and ignores SIGTERM itself), writes ``_vizdoom/`` and ``_vizdoom.ini`` into the working directory, and leaves
its shared memory behind when it is killed. So the engine is started through a small guard, which asks the kernel to
kill it as soon as its parent dies and moves it to a temporary directory; directory and names of the shared memory
are removed as soon as both sides hold them open. (Killed in the fraction of a second before that, they stay: 20 kB.)
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

_MULTIPLAYER = {"cig", "multi_duel"}  # started alone, ViZDoom brings down the process: there is no start for one player

# Runs in the child between fork and exec, in an isolated interpreter: 1 is PR_SET_PDEATHSIG, 9 is SIGKILL. The thread
# of the parent that the signal waits for is ViZDoom's own, which lives exactly as long as the engine should. A parent
# that died before the call is noticed by its number.
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

    The guard needs Linux to tie the engine to its parent; elsewhere it only keeps the working directory clean.
    """
    engine = Path(vizdoom.__file__).with_name("vizdoom")
    with tempfile.TemporaryDirectory(prefix="worldmodel-vizdoom-") as folder:
        guard = Path(folder, "engine")
        command = [sys.executable, "-ISc", _GUARD, folder, str(os.getpid()), str(engine)]
        guard.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        guard.chmod(0o700)
        game.set_vizdoom_path(str(guard))
        game.set_doom_config_path(os.devnull)  # settings of the user's own Doom must not change the pictures
        game.init()
    _unlink_shared_memory(game.get_instance_id())


def stop(game: vizdoom.DoomGame) -> None:
    """Close the game, also one whose engine is dead or was never started."""
    game.close()


def _unlink_shared_memory(instance: str) -> None:
    """Remove the names of the shared memory; the memory itself stays until both sides are gone, however they go."""
    for kind in ("SM", "MQCtr", "MQDoom"):
        Path("/dev/shm", f"ViZDoom{kind}{instance}").unlink(missing_ok=True)


def scenarios() -> dict[str, Path]:
    """The scenarios for one player that ship with ViZDoom and need nothing else: name → WAD, the file of its maps."""
    folder, games = Path(vizdoom.scenarios_path), Path(vizdoom.__file__).parent
    wads = {path.stem: path for path in [*folder.glob("*.wad"), *games.glob("freedoom*.wad")]}
    return {name: wads[name] for name in sorted(wads) if (folder / f"{name}.cfg").exists() and name not in _MULTIPLAYER}


def maps(wad: Path) -> list[str]:
    """Names of the maps in a WAD, in its order. Asked for a map that is not there, the engine waits for ever."""
    with wad.open("rb") as file:
        _, count, offset = struct.unpack("<4sii", file.read(12))
        file.seek(offset)
        entries = struct.iter_unpack("<ii8s", file.read(16 * count))
    names = [name.rstrip(b"\0").decode("ascii", "replace") for _, _, name in entries]
    return [name for name in names if re.fullmatch(r"E\dM\d|MAP\d\d", name)]
