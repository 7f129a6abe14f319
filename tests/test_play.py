"""The play command: keys, dreams of several visitors, the server's protocol and its limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import PRIORS, SPEC, tiny_prior, tiny_tokenizer

pytest.importorskip("starlette", reason="the extra play is not installed")
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from worldmodel.data.store import EpisodeStore
from worldmodel.dreaming.videos import Place, read_scene
from worldmodel.serving.app import Limits, Server
from worldmodel.serving.batching import Batcher
from worldmodel.serving.dreams import Dreamer, Moment, Order, _leaves, shortened
from worldmodel.serving.keys import action_keys
from worldmodel.serving.messages import ProtocolError, pack, parse, unpack
from worldmodel.serving.visits import Visit
from worldmodel.types import Episode
from worldmodel.world import WorldModel

HOST = "127.0.0.1:8765"
LOCAL = {"hosts": {"127.0.0.1"}, "token": None}


@pytest.fixture(scope="module")
def dreamer(tmp_path_factory: pytest.TempPathFactory) -> Dreamer:
    folder = tmp_path_factory.mktemp("play") / "data"
    rng = np.random.default_rng(0)
    with EpisodeStore.writer(folder, SPEC) as store:
        for _ in range(12):
            frames = rng.integers(0, 256, (10, *SPEC.frame_shape), dtype=np.uint8)
            store.append(Episode.from_steps(frames, rng.integers(0, 3, 9), np.zeros(9), False, True))
    return Dreamer(WorldModel(SPEC, tiny_tokenizer(), tiny_prior()), EpisodeStore.open(folder))


def make_server(dreamer: Dreamer, **limits: Any) -> Server:
    return Server("tiny-1", SPEC, Batcher(dreamer), LOCAL, Limits(**limits))


@pytest.fixture
def client(dreamer: Dreamer) -> Iterator[TestClient]:
    with TestClient(make_server(dreamer).app, base_url=f"http://{HOST}") as client:
        yield client


class Visitor:
    """A connection that sends requests and reads replies."""

    def __init__(self, client: TestClient, **headers: str):
        self.context = client.websocket_connect("/play", headers={"host": HOST, **headers})

    def __enter__(self) -> Visitor:
        self.socket = self.context.__enter__()
        self.hello = self.socket.receive_json()
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)

    def ask(self, type: str, **fields: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
        self.socket.send_text(json.dumps({"type": type, **fields}))
        return unpack(self.socket.receive_bytes())

    def refused(self, text: str) -> str:
        """The reason for which the connection is closed after this message."""
        self.socket.send_text(text)
        notice = self.socket.receive_json()
        assert notice["type"] == "error"
        with pytest.raises(WebSocketDisconnect) as closed:
            self.socket.receive_json()
        assert closed.value.code == 1008
        return str(notice["reason"])


def dream(dreamer: Dreamer, orders: list[list[int]], seeds: list[int], temperature: float = 1.0) -> list[list[Moment]]:
    """Dreams that are stepped together under the actions of each."""
    moments = [dreamer.begin(dreamer.read(Place(seed, seed % 3)), seed) for seed in seeds]
    histories: list[list[Moment]] = [[] for _ in seeds]
    for actions in zip(*orders, strict=True):
        asked = [Order(moment, action, temperature) for moment, action in zip(moments, actions, strict=True)]
        for index, moment in dreamer.step(asked):
            moments[index] = moment
            histories[index].append(moment)
    return histories


def same(moments: list[Moment], others: list[Moment]) -> bool:
    return all(
        np.array_equal(a.frame, b.frame) and np.array_equal(a.codes, b.codes)
        for a, b in zip(moments, others, strict=True)
    )


ACTIONS = [[(step // 2 + row) % 3 for step in range(12)] for row in range(8)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_are_independent(dreamer: Dreamer, temperature: float) -> None:
    together = dream(dreamer, ACTIONS, list(range(8)), temperature)
    for row in (0, 3, 7):
        assert same(dream(dreamer, [ACTIONS[row]], [row], temperature)[0], together[row])
    assert not same(together[0], together[1])


@pytest.mark.parametrize("name", PRIORS)
def test_dreams_of_different_ages_are_stepped_together(dreamer: Dreamer, name: str) -> None:
    one = Dreamer(WorldModel(SPEC, tiny_tokenizer(), tiny_prior(name)), dreamer.store)
    [old, young] = [one.begin(one.read(Place(seed, 0)), seed) for seed in range(2)]
    for _ in range(6):
        [(_, old)] = one.step([Order(old, 1, 1.0)])
    together = dict(one.step([Order(old, 2, 1.0), Order(young, 1, 1.0)]))
    assert same([together[0]], [moment for _, moment in one.step([Order(old, 2, 1.0)])])
    assert same([together[1]], [moment for _, moment in one.step([Order(young, 1, 1.0)])])


def test_steps_that_wait_together_are_one_pass(dreamer: Dreamer, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = [dreamer.begin(dreamer.read(Place(seed, 0)), seed) for seed in range(8)]
    orders = [Order(moment, 1, 1.0) for moment in begun]

    async def ask(batcher: Batcher) -> list[Moment]:
        return await asyncio.gather(*(batcher.step(order) for order in orders))

    batcher, step, passes = Batcher(dreamer), dreamer.step, list[int]()
    monkeypatch.setattr(dreamer, "step", lambda together: passes.append(len(together)) or step(together))
    found = asyncio.run(ask(batcher))
    batcher.close()
    assert passes == [8]
    assert same(found, [moment for order in orders for _, moment in step([order])])


def test_a_dream_is_that_of_the_dream_command(dreamer: Dreamer) -> None:
    begun, actions = dreamer.read(Place(3, 0)), ACTIONS[0]
    generator = torch.Generator().manual_seed(3)
    known = {"seen_actions": torch.tensor(begun.actions), "generator": generator}
    expected = dreamer.world.imagine(torch.tensor(begun.frames), actions, **known)
    found = dream(dreamer, [actions], [3])[0]
    assert np.array_equal(np.stack([moment.codes for moment in found]), expected.codes[0].numpy())
    assert found[-1].total == pytest.approx(float(expected.rewards.sum()), rel=1e-5)


def test_a_moment_is_kept_in_16_bits_where_these_suffice(dreamer: Dreamer) -> None:
    state = dreamer.begin(dreamer.read(Place(3, 0)), 0).state
    moment = Moment(shortened(state, 2**15 - 1), *[None] * 8)  # type: ignore[arg-type]
    assert {tensor.dtype for tensor in _leaves(moment.kept)} == {torch.int16}
    assert shortened(state, 2**15) is state
    for tensor, kept in zip(_leaves(state), _leaves(moment.state), strict=True):
        assert tensor.dtype == torch.int64 and torch.equal(kept, tensor)


def test_a_memory_sees_the_frames_before_the_place(dreamer: Dreamer) -> None:
    assert dreamer.earlier == 0
    one = Dreamer(WorldModel(SPEC, tiny_tokenizer(), tiny_prior("conv_pose")), dreamer.store)
    one.earlier, place = 9, Place(3, 5)
    begun, stored = one.read(place), dreamer.store.episode(3)
    assert begun.earlier == 5  # as many as the episode has
    assert np.array_equal(begun.frames, stored.frames[: 5 + one.context])
    scene = read_scene(one.store, place, one.context, 0, np.array([1]), one.earlier)
    known = np.concatenate([scene.earlier, scene.seen]), np.concatenate([scene.earlier_actions, scene.seen_actions])
    assert np.array_equal(begun.frames, known[0]) and np.array_equal(begun.actions, known[1])
    visit = Visit(SPEC, Batcher(one), beginning=begun)
    visit.moments.extend(moment for _, moment in one.step([Order(one.begin(begun, 0), 1, 1.0)]))
    strips = visit._strips(0)
    assert strips is not None and strips[0].seen == one.context and len(strips[0]) == one.context + 1


def test_the_page_and_its_protocol(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get("/page/play.js").status_code == client.get("/page/play.css").status_code == 200
    for path in ("/page/app.py", "/page/..%2fapp.py", "/spec.json", "/page/"):
        assert client.get(path).status_code == 404
    with Visitor(client) as visitor:
        assert [action["name"] for action in visitor.hello["actions"]] == list(SPEC.action_names)
        header, parts = visitor.ask("starts", seed=0)
        assert 1 < len(header["places"]) <= 12
        assert len(parts["pixels"]) == len(header["places"]) * 16 * 16 * 4
        episode, frame = header["places"][0]
        header, parts = visitor.ask("begin", episode=episode, frame=frame, seed=5)
        assert (header["type"], header["step"], header["undo"]) == ("frame", 0, 0)
        header, parts = visitor.ask("step", action=1)
        assert (header["step"], header["action"], header["grid"], len(header["codes"])) == (1, 1, [4, 4], 16)
        assert len(parts["dream"]) == 16 * 16 * 4
        visitor.ask("step", action=2, temperature=0)
        for suffix, magic in (("png", b"\x89PNG"), ("gif", b"GIF8")):
            header, parts = visitor.ask("save", suffix=suffix, first=2 * (suffix == "gif"))
            assert parts["file"].startswith(magic)


def test_undo_is_exact(client: TestClient) -> None:
    with Visitor(client) as visitor:
        begun = visitor.ask("begin", episode=1, frame=0, seed=5)
        first = [visitor.ask("step", action=action)[1] for action in (1, 2, 0)]
        back, pixels = visitor.ask("undo", steps=3)
        assert (back["step"], back["undo"], pixels) == (0, 0, begun[1])
        assert [visitor.ask("step", action=action)[1] for action in (1, 2, 0)] == first
        assert visitor.ask("undo", steps=1)[1] == first[1]
        assert visitor.ask("step", action=1)[0]["codes"] != first[2]
        assert visitor.refused('{"type":"undo","steps":0}').startswith("invalid message: undo.steps")


class Counting:
    """An agent whose actions are the numbers of its calls in an episode, modulo 3."""

    def begin(self, action_names: tuple[str, ...], rng: np.random.Generator) -> None:
        assert action_names == SPEC.action_names
        self.calls = 0

    def act(self, frame: np.ndarray) -> int:
        assert frame.shape == SPEC.frame_shape
        self.calls += 1
        return self.calls % 3


def test_an_agent_plays_and_begins_anew_after_others(dreamer: Dreamer) -> None:
    server = Server("tiny-1", SPEC, Batcher(dreamer), LOCAL, make_agent=Counting)
    with TestClient(server.app, base_url=f"http://{HOST}") as client, Visitor(client) as visitor:
        assert visitor.hello["agent"] and not visitor.hello["beside"]
        visitor.ask("begin", episode=0, frame=0, seed=0)
        assert [visitor.ask("drive")[0]["action"] for _ in range(3)] == [1, 2, 0]
        visitor.ask("step", action=0)
        assert visitor.ask("drive", temperature=0)[0]["action"] == 1
        visitor.ask("undo", steps=1)
        assert visitor.ask("drive")[0]["action"] == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "invalid message"),
        ("[" * 500, "invalid message"),
        ('{"type":"fly"}', "invalid message"),
        ('{"type":"step","action":true}', "invalid message: step.action"),
        ('{"type":"step","action":-1}', "invalid message: step.action"),
        ('{"type":"step","action":1,"temperature":NaN}', "invalid message"),
        ('{"type":"step","action":1,"more":1}', "invalid message: step.more"),
        ('{"type":"step","action":1}', "step before begin"),
        ('{"type":"undo","steps":1}', "undo without a frame"),
        ('{"type":"drive"}', "this server has no agent"),
        ('{"type":"environment","seed":1}', "this server shows no environment"),
        ('{"type":"save","suffix":"png"}', "save before"),
        ('{"type":"save","suffix":"/etc/passwd"}', "invalid message"),
        ('{"type":"begin","episode":99,"frame":0,"seed":0}', "episode 99"),
        ('{"type":"begin","episode":0,"frame":99,"seed":0}', "frame 99"),
        (" " * 2000, "a message of more than 1024 bytes"),
    ],
)
def test_a_wrong_message_closes_its_connection(client: TestClient, message: str, reason: str) -> None:
    with Visitor(client) as other:
        other.ask("begin", episode=0, frame=0, seed=0)
        with Visitor(client) as visitor:
            assert visitor.refused(message).startswith(reason)
        assert other.ask("step", action=0)[0]["step"] == 1


def test_an_unknown_action_closes_the_connection(client: TestClient) -> None:
    with Visitor(client) as visitor:
        visitor.ask("begin", episode=0, frame=0, seed=0)
        assert visitor.refused('{"type":"step","action":3}') == "unknown action 3; choose 0 to 2"


def test_limits(dreamer: Dreamer) -> None:
    server = make_server(dreamer, visitors=2, burst=5, messages_per_second=0.1, idle_seconds=0.2)
    with TestClient(server.app, base_url=f"http://{HOST}") as client:
        with Visitor(client) as first, Visitor(client):
            with Visitor(client) as third:
                assert third.hello["type"] == "wait"
            for _ in range(5):
                first.ask("begin", episode=0, frame=0, seed=0)
            assert first.refused('{"type":"step","action":0}') == "more than 0.1 messages a second"
        with Visitor(client) as idle:  # the places are free again
            assert idle.socket.receive_json()["reason"] == "no message for 0.2 seconds"
    assert not server.visits


def test_the_places_of_those_who_leave_are_free(dreamer: Dreamer) -> None:
    server = make_server(dreamer)
    with TestClient(server.app, base_url=f"http://{HOST}") as client, Visitor(client) as first:
        first.ask("begin", episode=0, frame=0, seed=0)
        for seed in range(9):
            with Visitor(client) as visitor:
                visitor.ask("begin", episode=0, frame=0, seed=seed)
        assert first.ask("step", action=0)[0]["step"] == 1
    assert not server.visits


def test_other_sites_are_refused(dreamer: Dreamer) -> None:
    with TestClient(make_server(dreamer).app, base_url=f"http://{HOST}") as client:
        assert client.get("/", headers={"host": "evil.example:8765"}).status_code == 403
        assert client.get("/", headers={"origin": "http://evil.example"}).status_code == 403
        with Visitor(client, origin=f"http://{HOST}") as visitor:
            assert visitor.hello["type"] == "hello"
        for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"}):
            with pytest.raises(WebSocketDisconnect), Visitor(client, **headers):
                pass


def test_another_host_needs_the_token(dreamer: Dreamer) -> None:
    server = Server("tiny-1", SPEC, Batcher(dreamer), {"hosts": None, "token": "secret"})
    with TestClient(server.app, base_url="http://box.example:80") as client:
        assert [client.get(f"/{query}").status_code for query in ("", "?token=other", "?token=secret")] == [
            403,
            403,
            200,
        ]
        assert client.get("/page/play.js").status_code == 200
        with client.websocket_connect("/play?token=secret") as socket:
            assert socket.receive_json()["type"] == "hello"
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/play?token=secre"):
            pass


def keys(*names: str) -> dict[str, str]:
    """Name → keys, the first of each group."""
    return {action.name: "+".join(group[0] for group in action.keys) for action in action_keys(names)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("noop", "forward", "left", "right"), ("", "ArrowUp", "ArrowLeft", "ArrowRight")),
        (("NOOP", "FIRE", "UPRIGHT", "UPFIRE"), ("", "Space", "ArrowRight+ArrowUp", "Space+ArrowUp")),
        (("left", "move_left", "forward+move_left"), ("ArrowLeft", "KeyA", "KeyA+ArrowUp")),
        (("left", "pickup", "toggle", "done"), ("ArrowLeft", "Digit1", "Space", "Digit2")),
        (("noop", "wait", "forward", "up"), ("", "Digit1", "ArrowUp", "Digit2")),
        (("move_left", "do", "sleep"), ("ArrowLeft", "Space", "Digit1")),
    ],
)
def test_keys_come_from_the_names(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert keys(*names) == dict(zip(names, expected, strict=True))


def test_many_actions_have_distinct_keys() -> None:
    found = [action.keys for action in action_keys([f"thing {n}" for n in range(40)])]
    given = [key for key in found if key]
    assert len(given) == len(set(given)) == 24 and not any(found[24:])


def test_messages_are_packed() -> None:
    assert unpack(pack({"type": "frame"}, a=b"12", b=b"")) == ({"type": "frame"}, {"a": b"12", "b": b""})
    with pytest.raises(ProtocolError):
        parse("null")
