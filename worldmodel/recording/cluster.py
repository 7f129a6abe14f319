"""Record with actors of Ray, on one or several machines.

Ray starts the actors where processors are free, carries their messages and reports their deaths. Each actor is a pool
of recorder processes and writes the episodes to a store of its own, so that frames never leave a machine. A message
states how much is in the store since the last one.
"""

import contextlib
import dataclasses
import math
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from worldmodel.data.store import EpisodeStore
from worldmodel.errors import BusyError, ConfigError, DataError, EnvError
from worldmodel.recording.collect import Collected, CollectSettings, Written, count, shared, write
from worldmodel.recording.pool import MOST_FAILURES, START_SECONDS, STOP_SECONDS, RecorderPool, serialized
from worldmodel.recording.recorder import ActionSource, MakeEnv
from worldmodel.types import Spec
from worldmodel.util.progress import Bars, deferred

MESSAGE_SECONDS = 0.5  # between two messages of an actor
LOCK_SECONDS = 15.0  # for the end of an actor that is replaced; Ray kills one that does not answer after 5 seconds
OBJECT_STORE_BYTES = 100 * 10**6  # of Ray on this machine alone; messages are small


@dataclasses.dataclass(frozen=True)
class Place:
    """The store that an actor writes to."""

    host: str
    path: str
    episodes: int  # in it


@dataclasses.dataclass
class Share:
    """The part of the steps that one actor after the other records."""

    number: int
    left: int  # steps that are in no store yet
    attempt: int = 0  # number of earlier actors
    place: Place | None = None  # of the last actor, with the episodes that it reported
    actor: Any = None
    messages: Any = None  # a generator of references
    open: bool = False  # whether this actor has opened its store
    deadline: float = 0.0  # time.monotonic() by which it has to send one


class Player:
    """The class of the actors.

    Args:
        task: of :func:`serialized`.
        spec: of the environment.
        folder: of the stores. An actor takes the first of ``<host>-0``, ``<host>-1``, … that no other writes to.
        settings: of the recording.
        seed: of the settings.
        paths: where modules are looked for, after ``sys.path``; on another machine, some may be missing.
    """

    def __init__(self, task: bytes, spec: Spec, folder: str, settings: CollectSettings, seed: int, paths: list[str]):
        sys.path += [path for path in paths if path not in sys.path]
        self._task, self._spec, self._folder, self._settings, self._seed = task, spec, folder, settings, seed
        self._stopped = False

    def stop(self) -> None:
        """Request the unfinished episodes; :meth:`record`, in another thread, sends them and ends."""
        self._stopped = True

    def record(self, share: Share) -> Iterator[Place | Written]:
        """Record what is left of a share; the first message is the store. Raises what :func:`collect` raises."""
        with self._open(share) as store:
            unreported = self._unreported(share, store)
            yield Place(platform.node(), str(store.path), len(store) - unreported.episodes)
            left = share.left - unreported.steps
            name = zlib.crc32(store.path.name.encode())
            seed = (self._seed, store.next_number, name, share.number, share.attempt)
            orders = shared(seed, left, self._settings.workers, self._settings.longest)
            with RecorderPool(self._task, orders, len(orders), self._settings.timeout) as pool:
                sent, interval = time.monotonic(), 0.0  # the first step is reported at once
                for report in pool.reports():
                    unreported.add(write(store, report))
                    if self._stopped:
                        for rest in pool.stop():
                            unreported.add(write(store, rest))
                        break
                    if time.monotonic() - sent >= interval:
                        yield unreported
                        interval = MESSAGE_SECONDS if unreported.reported else interval
                        unreported, sent = Written(), time.monotonic()
            yield unreported

    def _open(self, share: Share) -> EpisodeStore:
        """The store of the actor that this one replaces, if it is there and free, or else one of this machine."""
        until = time.monotonic() + LOCK_SECONDS
        while share.place and Path(share.place.path, "index.jsonl").exists() and time.monotonic() < until:
            with contextlib.suppress(BusyError):
                return self._verified(Path(share.place.path))
            time.sleep(0.1)
        number = 0
        while True:
            with contextlib.suppress(BusyError):
                return self._verified(Path(self._folder, f"{platform.node()}-{number}"))
            number += 1

    def _verified(self, path: Path) -> EpisodeStore:
        store = EpisodeStore.writer(path, self._spec)
        store.verify()
        return store

    def _unreported(self, share: Share, store: EpisodeStore) -> Written:
        """What the actor that this one replaces wrote after its last message."""
        found = Written()
        if share.place and share.place.path == str(store.path):
            for index in range(share.place.episodes, len(store)):
                found.add(count(store.episode(index), len(self._spec.action_names)))
        return found


def collect_on_cluster(
    folder: Path,
    spec: Spec,
    make_env: MakeEnv,
    explorer: ActionSource,
    settings: CollectSettings,
    seed: int,
    progress: bool = True,
) -> tuple[Collected, list[Place]]:
    """Record exactly ``settings.steps`` steps into stores below ``folder``, which are returned with the statistics.

    ``folder`` is a path on each machine: on a shared file system the stores are beside each other, otherwise each is on
    the disk of its machine. An actor that dies or is silent is replaced, and its store is continued where its disk can
    be reached. Raises :class:`ConfigError` when Ray or a machine with enough processors is missing, :class:`EnvError`
    when Ray cannot be started or reached, and what :func:`collect` raises.
    """
    folder = folder.absolute()
    if (folder / "index.jsonl").exists():
        raise DataError(f"{folder} holds a store; collect.engine=ray makes one for each actor in a folder: data=…")
    task = serialized(make_env, explorer, settings.workers)
    with (
        connected(settings) as actors,
        deferred() as stopped,
        Bars(Console(file=sys.stderr, quiet=not progress)) as bars,
    ):
        collected = Collected(action_names=spec.action_names, target=settings.steps)
        paths = list(map(os.path.abspath, sys.path))
        cluster = _Cluster(actors, settings, (task, spec, str(folder), settings, seed, paths))
        bar = bars.add_task("recording", total=settings.steps)
        for written in cluster.written(stopped):
            collected.take(written, bars, bar)
        if stopped():
            raise KeyboardInterrupt
    return collected, list(cluster.places.values())


@contextlib.contextmanager
def connected(settings: CollectSettings) -> Iterator[int]:
    """A connection to Ray: that of this process, to the cluster of RAY_ADDRESS, or to a Ray that is started on this
    machine and ends with the block. The value is the number of actors."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"collect.engine=ray needs Ray: pip install 'worldmodel[ray]' ({error})") from error
    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if not address:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise it reports its use to its developers
            options |= {"num_cpus": (settings.actors or 1) * settings.workers, "address": "local"}
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(**options)
        except Exception as error:  # of several kinds, some without a name of their own
            ray.shutdown()
            what = f"there is no Ray cluster at {address} (RAY_ADDRESS)" if address else "Ray cannot be started here"
            raise EnvError(f"{what}: {' '.join(str(error).split())}") from error
    try:
        processors = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        if max(processors) < settings.workers:
            raise ConfigError(f"collect.workers is {settings.workers}, and no machine of the Ray cluster has more than "
                              f"{max(processors):g} processors; choose a smaller one")  # fmt: skip
        yield settings.actors or sum(each >= settings.workers for each in processors)
    finally:
        if own:
            ray.shutdown()


class _Cluster:
    """The actors, which share the steps."""

    def __init__(self, actors: int, settings: CollectSettings, arguments: tuple[Any, ...]):
        orders = shared((), settings.steps, actors, settings.longest)
        self._shares = [Share(number, order.steps) for number, order in enumerate(orders)]
        self._settings, self._arguments = settings, arguments
        self._failures = 0  # consecutive, without a recorded episode
        self.places: dict[tuple[str, str], Place] = {}  # by host and path

    def written(self, stopped: Callable[[], bool]) -> Iterator[Written]:
        """What the actors recorded, until every step is in a store, or until ``stopped``."""
        try:
            for share in self._shares:
                self._start(share)
            while self._shares and not stopped():
                yield from self._listen(self._replace)
                for share in [one for one in self._shares if time.monotonic() > one.deadline]:
                    yield self._late(share)
            for share in list(self._shares):
                share.actor.stop.remote() if share.open else self._remove(share)
            until = time.monotonic() + 2 * STOP_SECONDS
            while self._shares and time.monotonic() < until:
                yield from self._listen(self._give_up)
        finally:
            for share in list(self._shares):
                self._remove(share)

    def _start(self, share: Share) -> None:
        import ray

        options = {"num_cpus": self._settings.workers, "scheduling_strategy": "SPREAD", "max_concurrency": 2}
        share.actor = ray.remote(Player).options(**options).remote(*self._arguments)
        share.open = False
        order = dataclasses.replace(share, actor=None, messages=None)
        share.messages = share.actor.record.options(num_returns="streaming").remote(order)
        share.deadline = time.monotonic() + START_SECONDS

    def _remove(self, share: Share) -> None:
        import ray

        self._shares.remove(share)
        ray.kill(share.actor)  # which frees its processors for one that waits

    def _give_up(self, share: Share, reason: str) -> Written:
        self._remove(share)
        return Written()

    def _late(self, share: Share) -> Written:
        """What to do about an actor that did not send a message in time."""
        if share.open:
            return self._replace(share, f"silent for {self._settings.timeout:g} s")
        share.deadline = math.inf
        need = f"it needs a machine of the Ray cluster with {self._settings.workers} free processors"
        return Written(warnings=[f"actor {share.number} has not started; {need}"])

    def _replace(self, share: Share, reason: str) -> Written:
        self._remove(share)
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            raise EnvError(f"recording failed {self._failures} times in a row, the last time because: {reason}")
        share.attempt += 1
        self._shares.append(share)
        self._start(share)
        return Written(warnings=[f"actor {share.number} was replaced, its unfinished episodes are lost: {reason}"])

    def _listen(self, failed: Callable[[Share, str], Written]) -> Iterator[Written]:
        import ray

        by_messages = {share.messages: share for share in self._shares}
        ready: list[Any] = ray.wait(list(by_messages), timeout=0.5)[0]
        for messages in ready:
            share = by_messages[messages]
            try:
                message: Any = ray.get(next(messages))
            except StopIteration:
                self._remove(share)
            except ray.exceptions.RayTaskError as error:  # raised by the actor's code
                raise error.cause from None
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1].split(" Some common causes")[0]
                if getattr(error, "actor_init_failed", False):
                    raise EnvError(f"an actor cannot start ({reason}); every machine of the Ray cluster needs the "
                                   "package worldmodel") from error  # fmt: skip
                yield failed(share, reason)
            else:
                share.deadline = time.monotonic() + self._settings.timeout
                yield self._take(share, message)

    def _take(self, share: Share, message: Place | Written) -> Written:
        if isinstance(message, Place):
            share.open, share.place, message = True, message, Written()
        assert share.place is not None
        share.left -= message.steps
        share.place = dataclasses.replace(share.place, episodes=share.place.episodes + message.episodes)
        self.places[share.place.host, share.place.path] = share.place
        if message.episodes:
            self._failures = 0
        return message
