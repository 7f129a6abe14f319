"""The server of ``python -m worldmodel.play``: latency, frames a second, memory, and what hostile visitors cause.

  python -m benchmarks.play run=my_way_home-1 --seconds 60

Key to picture is measured in Chromium, if it and playwright are installed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from worldmodel.serving.messages import unpack

STEP = '{"type":"step","action":1}'
HOSTILE = ("", "null", "{}", "[[[[", '{"type":"step","action":-1}', '{"type":"step","action":1e400}', "\x00" * 900,
           '{"type":"begin","episode":1,"frame":-1,"seed":0}', '{"type":"undo","steps":1}', "x" * 100_000,
           '{"type":"save","suffix":"../../x"}', '{"type":"step","action":1,"temperature":-1}', STEP)  # fmt: skip


@contextlib.contextmanager
def server(overrides: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running server and its address."""
    command = [sys.executable, "-m", "worldmodel.play", "--port", "0", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if found := re.search(r"http://\S+", line):
                yield found[0], process
                break
        process.terminate()
        print(f"errors of the server: {process.stderr.read() or 'none'}")


@contextlib.asynccontextmanager
async def visitor(address: str, seed: int = 0) -> AsyncIterator[ClientConnection]:
    """A connection with a dream that has begun."""
    async with connect(address.replace("http", "ws") + "play", compression=None) as page:
        hello = json.loads(await page.recv())
        if hello["type"] != "hello":
            raise ConnectionError(hello["reason"])
        await page.send(json.dumps({"type": "begin", "episode": 0, "frame": 0, "seed": seed}))
        await page.recv()
        yield page


async def step(page: ClientConnection) -> tuple[float, bytes]:
    """One frame: seconds from request to reply, and the reply."""
    started = time.perf_counter()
    await page.send(STEP)
    reply = await page.recv()
    assert isinstance(reply, bytes)
    return time.perf_counter() - started, reply


async def latency(address: str, frames: int) -> str:
    async with visitor(address) as page:
        spent = [(await step(page))[0] for _ in range(frames)][frames // 10 :]
    low, high = statistics.quantiles(spent, n=20)[9::9]
    return f"one visitor, request to reply: p50 {1e3 * low:.1f} ms, p95 {1e3 * high:.1f} ms ({1 / low:.0f} frames/s)"


async def steady(address: str, rate: float, seconds: float, seed: int = 0) -> float:
    """Frames a second of a visitor who asks for ``rate`` of them."""
    async with visitor(address, seed) as page:
        started = time.perf_counter()
        due, frames = started, 0
        while due < started + seconds:
            await step(page)
            frames += 1
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        return frames / (time.perf_counter() - started)


def memory(process: subprocess.Popen[str]) -> float:
    """Resident MiB."""
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def long(address: str, process: subprocess.Popen[str], seconds: float) -> str:
    """Frames a second at 20 requested, and memory at a tenth of the time and at its end."""
    task = asyncio.create_task(steady(address, 20, seconds))
    await asyncio.sleep(seconds / 10)
    before = memory(process)
    await asyncio.sleep(0.85 * seconds)
    after = memory(process)
    return (f"one visitor at 20 frames/s for {seconds:.0f} s: {await task:.2f} frames/s; "
            f"memory {before:.0f} → {after:.0f} MiB ({100 * (after / before - 1):+.1f} %)")  # fmt: skip


async def together(address: str, rate: float, seconds: float) -> str:
    found = await asyncio.gather(*(steady(address, rate, seconds, seed) for seed in range(8)))
    return f"8 visitors at {rate:g} frames/s each: {min(found):.2f} to {max(found):.2f} frames/s"


async def hostile(address: str, messages: int, vanishing: int) -> str:
    """A visitor's frames, alone and while others send nonsense or vanish."""
    async with visitor(address, 7) as page:
        alone = [pixels(await step(page)) for _ in range(40)]
    async with visitor(address, 7) as page:
        attack = asyncio.create_task(_attack(address, messages, vanishing))
        among: list[bytes] = []
        done = asyncio.Event()
        attack.add_done_callback(lambda _: done.set())
        while not done.is_set():
            if len(among) < len(alone):
                among.append(pixels(await step(page)))
            await asyncio.sleep(0.05)
        closed = attack.result()
    await asyncio.sleep(1)
    rows = await asyncio.gather(*(steady(address, 5, 1, seed) for seed in range(8)), return_exceptions=True)
    free = sum(isinstance(row, float) for row in rows)
    dream = "the same" if among == alone[: len(among)] else "DIFFERENT"
    return (f"{messages} hostile messages closed {closed} connections, {vanishing} visitors vanished; "
            f"the dream beside them is {dream}; {free} of 8 places are free afterwards")  # fmt: skip


def pixels(answer: tuple[float, bytes]) -> bytes:
    return unpack(answer[1])[1]["dream"]


async def _attack(address: str, messages: int, vanishing: int) -> int:
    """Send messages at random, each connection until it is closed; then connect, ask and vanish."""
    rng, closed, sent = random.Random(0), 0, 0
    while sent < messages:
        with contextlib.suppress(ConnectionError):
            async with visitor(address) as page:
                try:
                    while sent < messages:
                        sent += 1
                        await page.send(rng.choice(HOSTILE))
                        await page.recv()
                except ConnectionClosed:
                    closed += 1

    async def vanish() -> None:
        with contextlib.suppress(ConnectionError, ConnectionClosed):
            async with visitor(address) as page:
                await page.send(STEP)
                page.transport.abort()

    for _ in range(0, vanishing, 20):
        await asyncio.gather(*(vanish() for _ in range(20)))
    return closed


def key_to_picture(address: str, presses: int) -> str:
    """Milliseconds from a key to the picture on the canvas, as the page measures them."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        return "key to picture: not measured, since Chromium or playwright is not installed"
    rng = random.Random(0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.get_by_text("press an action key").wait_for()
        for number in range(presses):
            page.keyboard.press("ArrowLeft" if number % 2 else "ArrowUp")
            page.wait_for_timeout(rng.uniform(150, 350))
        found: list[Any] = page.evaluate("play.meter.latencies")
        browser.close()
    low, high = statistics.quantiles(found, n=20)[9::9]
    return f"key to picture ({len(found)} keys): p50 {low:.1f} ms, p95 {high:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of worldmodel.play: run=…, data=…, device=…")
    parser.add_argument("--seconds", type=float, default=60, help="of the steady visitors (60)")
    parser.add_argument("--messages", type=int, default=10_000, help="hostile messages (10,000)")
    args = parser.parse_args()
    print(f"load at the start: {os.getloadavg()[0]:.1f}")
    with server(args.overrides) as (address, process):
        print(asyncio.run(latency(address, 300)), flush=True)
        print(key_to_picture(address, 100), flush=True)
        print(asyncio.run(together(address, 10, min(args.seconds, 30))), flush=True)
        print(asyncio.run(long(address, process, args.seconds)), flush=True)
        print(asyncio.run(hostile(address, args.messages, 200)), flush=True)


if __name__ == "__main__":
    main()
