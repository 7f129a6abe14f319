"""Which processes live: those of ViZDoom's engine, and any by its number."""

from __future__ import annotations

import time
from pathlib import Path


def engines(parent: int) -> list[int]:
    """Process ids of the living ViZDoom engines that a process started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        state, ppid = rest.split()[:2]
        if name.endswith("(vizdoom") and int(ppid) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(process: int) -> bool:
    for _ in range(100):
        if not alive(process):
            return True
        time.sleep(0.05)
    return False
