"""Plays the episodes of an evaluation, and stores those that are finished so that it can be resumed."""

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import BusyError
from worldmodel.recording.pool import RecorderPool, serialized
from worldmodel.recording.recorder import ActionSource, FrameSource, Order, Recorder, Recording
from worldmodel.types import Spec

SECONDS = 1.0  # interval of the progress reports; an episode of a planner can take many minutes

UNFINISHED = "unfinished"


def play(
    make_env: Callable[[], FrameSource],
    agent: ActionSource,
    orders: Sequence[Order],
    workers: int = 1,
    on_steps: Callable[[int], bool] = lambda steps: True,
) -> Iterator[Recording]:
    """Whole episodes, in the order in which they finish; ``on_steps`` is called about once a second with the number of
    steps since its last call, and returns whether to continue.

    One worker plays in this process, for others ``make_env`` and ``agent`` must be picklable. Raises :class:`EnvError`
    if the environment or a process fails repeatedly, and the errors of the agent, from another process as EnvError.
    """
    if min(workers, len(orders)) > 1:
        # Without a limit on the time, because a planner may need minutes for a decision.
        with RecorderPool(serialized(make_env, agent, workers), orders, workers, timeout=math.inf) as pool:
            for report in pool.reports():
                if not on_steps(report.steps):
                    return
                if report.recording is not None:
                    yield report.recording
        return

    def report_steps(steps: int) -> None:
        recorder.stopped = not on_steps(steps)

    recorder = Recorder(agent, report_steps, SECONDS)
    with contextlib.closing(make_env()) as env:
        for order in orders:
            report_steps(0)
            yield from recorder.record(env, order)


class UnfinishedEvaluation(contextlib.AbstractContextManager["UnfinishedEvaluation"]):
    """The finished episodes of an evaluation, in a separate folder until :meth:`discard`.

    Args:
        folder: of the evaluation, ``<run>/agents/<name>``; the episodes are in ``<run>/unfinished/<name>-…``.
        spec: of the environment.
        settings: environment, agent and seed, as JSON. Other settings have another folder.

    Raises :class:`BusyError` if another process runs the same evaluation.
    """

    def __init__(self, folder: Path, spec: Spec, settings: dict[str, Any]):
        text = json.dumps([json.loads(spec.to_json()), settings], sort_keys=True)
        name = f"{folder.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.folder = folder.parents[1] / UNFINISHED / name
        try:
            self._store = EpisodeStore.writer(self.folder, spec)
        except BusyError as error:
            fault = f"another process runs the same evaluation for {folder}"
            raise BusyError(f"{fault}; wait for it, or choose another --name") from error
        self._store.verify()  # damaged episodes are removed and played again

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._store.__exit__(kind, *error)

    def __iter__(self) -> Iterator[Recording]:
        """The stored episodes, in the order of :meth:`add`."""
        for index, entry in enumerate(self._store.entries):
            if match := re.fullmatch(r"(\d+) in (\S+) s", entry.key or ""):
                yield Recording(self._store.episode(index), number=int(match[1]), seconds=float(match[2]))

    def add(self, played: Recording) -> None:
        self._store.append(played.episode, held_out=False, key=f"{played.number} in {played.seconds!r} s")

    def discard(self) -> None:
        """Remove the folder after the evaluation has been written."""
        (self.folder / "index.jsonl").unlink(missing_ok=True)  # first, because a folder without it is not a store
        shutil.rmtree(self.folder, ignore_errors=True)
        self._store.close()
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()
