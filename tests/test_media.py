"""Pictures and videos: what is drawn, what is kept, what is refused."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from worldmodel import media
from worldmodel.errors import ConfigError, DataError
from worldmodel.media import compose, draw, write
from worldmodel.media.compose import pictures
from worldmodel.util.output import VIDEO_SUFFIXES

T0, H = 3, 6
NAMES = ["forward", "left", "right", "noop", "open door", "forward"]


def frames(steps: int, channels: int = 3, size: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """Blocks of colour that differ from step to step: (steps, channels, *size) uint8."""
    blocks = np.random.default_rng(seed).integers(0, 256, (steps, channels, 4, 4), dtype=np.uint8)
    return np.kron(blocks, np.ones((1, 1, size[0] // 4, size[1] // 4), dtype=np.uint8))


def dream() -> media.Strip:
    return media.dream_strip(frames(T0), frames(H, seed=1), [None, "left", "right", *NAMES])


def read_mp4(path: Path) -> tuple[np.ndarray, float]:
    from moviepy import VideoFileClip

    with VideoFileClip(str(path)) as clip:
        return np.stack(list(clip.iter_frames())), clip.fps


def test_a_dream_strip_holds_the_seen_frames_and_the_action_that_led_to_each() -> None:
    strip = dream()
    assert strip.frames.shape == (T0 + H, 64, 64, 3)
    assert strip.actions == (None, "left", "right", *NAMES)
    assert strip.seen == T0


def test_tensors_and_grey_and_alpha_become_pictures() -> None:
    grey, alpha = frames(2, channels=1), frames(2, channels=4)
    assert np.array_equal(pictures(torch.from_numpy(grey)), np.repeat(grey.transpose(0, 2, 3, 1), 3, axis=-1))
    assert np.array_equal(pictures(alpha), alpha[:, :3].transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("channels", "shown"), [(2, [1]), (5, [4]), (6, [3, 4, 5]), (9, [6, 7, 8]), (16, [15])])
def test_of_a_stack_the_newest_frame_is_shown(channels: int, shown: list[int]) -> None:
    stack = frames(2, channels=channels)
    newest = stack[:, shown].transpose(0, 2, 3, 1)
    expected = np.broadcast_to(newest, (2, 64, 64, 3))
    assert np.array_equal(pictures(stack), expected)
    assert np.array_equal(media.gallery([("", torch.from_numpy(stack[:1]))])[6:-6:2, 6:-6:2][:64, :64], expected[0])


@pytest.mark.parametrize("wrong", [frames(2).astype(np.float32), frames(2)[0], frames(2)[:0]], ids=str)
def test_what_is_no_picture_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match="cannot show"):
        media.Strip(wrong)


def test_strips_must_run_side_by_side() -> None:
    with pytest.raises(DataError, match="different shapes"):
        next(media.canvases([media.Strip(frames(3)), media.Strip(frames(4))]))
    with pytest.raises(DataError, match="side by side"):
        media.triptych(frames(5), frames(T0 + H), dream())
    with pytest.raises(DataError, match="2 actions for 3 frames"):
        media.Strip(frames(3), actions=("left", "left"))
    with pytest.raises(DataError, match="nothing to show"):
        media.contact_sheet([])


def test_names_of_actions_leave_out_the_unknown() -> None:
    assert media.action_names(torch.tensor([-1, 1, 0]), ("noop", "forward")) == (None, "forward", "noop")


def test_the_picture_of_a_canvas_is_the_frame_enlarged_and_framed_by_its_kind() -> None:
    strip = dream()
    for t, canvas in enumerate(media.canvases([strip])):
        assert canvas.shape[0] % 2 == 0 and canvas.shape[1] % 2 == 0
        x, y = compose.GAP, compose.CAPTION  # corner of the first panel
        inside = canvas[y + compose.EDGE :, x + compose.EDGE :][:256, :256]
        assert np.array_equal(inside, strip.frames[t].repeat(4, 0).repeat(4, 1))
        assert tuple(canvas[y, x]) == (draw.SEEN if t < T0 else draw.DREAMT)
    assert t == T0 + H - 1


@pytest.mark.parametrize("size", [(16, 16), (84, 84), (60, 84), (240, 320)])
def test_small_frames_are_enlarged_by_a_whole_number(size: tuple[int, int]) -> None:
    canvas = next(media.canvases([media.Strip(frames(1, size=size))]))
    scale = -(-256 // min(size))
    assert canvas.shape[0] >= scale * size[0] and canvas.shape[1] >= scale * size[1]
    assert canvas.shape[0] % 2 == 0 and canvas.shape[1] % 2 == 0


def test_strips_stand_in_rows_of_as_many_as_asked_for() -> None:
    strips = [media.Strip(frames(1, seed=seed), str(seed)) for seed in range(4)]
    (row,), (square,), (column,) = (list(media.canvases(strips, size=64, across=across)) for across in (None, 2, 1))
    assert row.shape[1] > square.shape[1] > column.shape[1] and row.shape[0] < square.shape[0] < column.shape[0]
    held = [(y, x) for y in range(2) for x in range(2)]
    for strip, (y, x) in zip(strips, held, strict=True):  # the first two above, the others below
        half = square[y * square.shape[0] // 2 :, x * square.shape[1] // 2 :][: square.shape[0] // 2]
        windows = np.lib.stride_tricks.sliding_window_view(half[..., 0], (64, 64))
        assert (windows == strip.frames[0, ..., 0]).all((2, 3)).any()


def bar(strip: media.Strip, t: int, labels: media.Labels) -> np.ndarray:
    """What stands under the picture at step t."""
    canvas = next(itertools.islice(media.canvases([strip], labels), t, None))
    top = compose.CAPTION + 256 + 2 * compose.EDGE
    return canvas[top : top + compose.BAR]


def test_labels_are_drawn_as_asked() -> None:
    strip, t = dream(), T0 + 1
    none, arrows, names = (bar(strip, t, labels) for labels in ("none", "arrows", "names"))
    assert not np.array_equal(none, arrows) and not np.array_equal(none, names) and not np.array_equal(arrows, names)
    middle = (arrows != none).any(-1).any(0).nonzero()[0].mean()
    assert abs(middle - none.shape[1] / 2) < 5  # the arrow stands under the middle of the picture
    unnamed = T0 + NAMES.index("open door")  # no arrow fits it: its name is written
    assert not np.array_equal(bar(strip, unnamed, "arrows"), bar(strip, unnamed, "none"))
    assert np.array_equal(bar(strip, 0, "arrows"), bar(strip, 0, "none"))  # no action led to the first frame
    with pytest.raises(ConfigError, match="'emoji'; choose from arrows, names, none"):
        bar(strip, 0, "emoji")  # type: ignore[arg-type]


def centre_of_mass(name: str) -> tuple[float, float]:
    """Weight of an icon right of and below its middle."""
    mask = draw.icon(name, 32)
    assert mask is not None
    weights = np.asarray(mask, dtype=float)
    offsets = np.arange(32) - 15.5
    return float((weights.sum(0) * offsets).sum() / weights.sum()), float(
        (weights.sum(1) * offsets).sum() / weights.sum()
    )


def test_arrows_point_where_the_action_leads() -> None:
    for name in ("left", "LEFT", "move_left", "go-left"):
        assert centre_of_mass(name)[0] < -0.3 and abs(centre_of_mass(name)[1]) < 0.1
    assert centre_of_mass("forward")[1] < -0.3
    assert centre_of_mass("DOWN")[1] > 0.3
    right, down = centre_of_mass("UPRIGHT")
    assert right > 0.2 and down < -0.2
    turns = [np.asarray(draw.icon(name, 32)) for name in ("turn_left", "turn_right", "left")]
    assert np.array_equal(turns[0], turns[1][:, ::-1])
    assert not np.array_equal(turns[0], turns[2])
    assert not np.array_equal(np.asarray(draw.icon("UPFIRE", 32)), np.asarray(draw.icon("UP", 32)))
    assert [draw.icon(name, 32) for name in ("open door", "lefty", "", "toggle")] == [None] * 4


def test_a_sheet_shows_every_moment_in_order() -> None:
    strip = dream()
    sheet = media.contact_sheet([strip], columns=4)
    cell = 128 + 4
    found = []
    for t in range(T0 + H):
        wanted = strip.frames[t].repeat(2, 0).repeat(2, 1)
        x = compose.GAP + (t % 4) * (cell + 6) + 2
        found.append(any(np.array_equal(sheet[y : y + 128, x : x + 128], wanted) for y in range(len(sheet) - 127)))
    assert all(found)


def test_of_a_long_dream_every_nth_moment_is_shown_and_step_0_among_them() -> None:
    grey = np.arange(250, dtype=np.uint8)[:, None, None, None] * np.ones((3, 8, 8), np.uint8)  # tells the moment
    long = media.dream_strip(grey[:10], grey[10:], [None] * 10 + ["noop"] * 240)
    sheet = media.contact_sheet([long], size=8)
    cell, block = 8 + 4 + 6, 22 + 8 + 4 + 6 + 6  # picture, edges, gap; the line of labels above a row
    pixels = sheet[30 + 22 + 2 :: block, compose.GAP + 2 :: cell, 0][:, :10]
    assert pixels.flatten()[: 250 // 3 + 1].tolist() == list(range(0, 250, 3))  # step 0 is moment 9


def test_mp4_has_the_rate_the_size_and_the_frames(tmp_path: Path) -> None:
    strips = media.triptych(frames(T0 + H), frames(T0 + H, seed=2), dream())
    path = media.save(tmp_path / "new" / "dream.mp4", strips, rate=8.75)
    video, rate = read_mp4(path)
    expected = np.stack(list(media.canvases(strips)))
    assert rate == 8.75
    assert video.shape == expected.shape
    assert np.abs(video.astype(float) - expected).mean() < 6  # lossy, but the same pictures
    assert [p.name for p in path.parent.iterdir()] == ["dream.mp4"]


def test_gif_loops_at_the_rate_with_true_colours(tmp_path: Path) -> None:
    strips = [dream()]
    path = media.save(tmp_path / "dream.GIF", strips, rate=8.0)
    expected = list(media.canvases(strips, size=write.GIF_SIZE))
    with Image.open(path) as gif:
        assert gif.n_frames == len(expected)
        assert gif.info["loop"] == 0 and gif.info["duration"] == 120
        for t, canvas in enumerate(expected):
            gif.seek(t)
            assert np.abs(np.asarray(gif.convert("RGB")).astype(float) - canvas).mean() < 3


def test_a_gif_keeps_the_colour_of_what_is_small(tmp_path: Path) -> None:
    """A few red pixels in pictures of all shades of brown, which alone would fill the palette."""
    rng = np.random.default_rng(0)
    light = rng.integers(0, 200, (10, 1, 32, 32)) + rng.integers(-6, 7, (10, 3, 32, 32))
    pictures = (light.clip(0) * np.array([1.0, 0.75, 0.5]).reshape(1, 3, 1, 1)).astype(np.uint8)
    pictures[:, :, 15:17, 15:17] = np.array([200, 20, 60], np.uint8).reshape(1, 3, 1, 1)
    strip = media.dream_strip(pictures[:4], pictures[4:], [None] * 4 + ["noop"] * 6)
    path = media.save(tmp_path / "small.gif", [strip], rate=8.0)
    expected = next(iter(media.canvases([strip], size=write.GIF_SIZE)))
    red = np.abs(expected.astype(int) - [200, 20, 60]).sum(-1) == 0
    assert red.sum() > 50
    with Image.open(path) as gif:
        shown = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(shown[red] - [200, 20, 60]).max() <= 16


def test_the_same_strips_give_the_same_bytes(tmp_path: Path) -> None:
    for suffix in VIDEO_SUFFIXES:
        first, second = (media.save(tmp_path / f"{name}{suffix}", [dream()], 8.0).read_bytes() for name in "ab")
        assert first == second


def test_png_keeps_the_sheet_exactly(tmp_path: Path) -> None:
    path = media.save(tmp_path / "sheet.png", [dream()], rate=8.0, labels="names", title="a title")
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), media.contact_sheet([dream()], "names", title="a title"))


def test_another_suffix_lists_those_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dream\.avi.*\.mp4, \.gif, \.png"):
        media.save(tmp_path / "dream.avi", [dream()], rate=8.0)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dream.mp4"
    path.write_bytes(b"earlier")
    monkeypatch.setattr("moviepy.video.io.ffmpeg_writer.FFMPEG_BINARY", "/no/such/ffmpeg")
    with pytest.raises(ConfigError, match=r"no ffmpeg.*\.gif and \.png"):
        media.save(path, [dream()], rate=8.0)
    monkeypatch.setattr("moviepy.video.io.ffmpeg_writer.FFMPEG_BINARY", "false")  # an ffmpeg that gives up at once
    with pytest.raises(ConfigError, match="cannot write"):
        media.save(path, [dream()], rate=8.0)
    assert [p.name for p in tmp_path.iterdir()] == ["dream.mp4"] and path.read_bytes() == b"earlier"


def test_a_full_disk_is_not_blamed_on_the_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moviepy.video.io.ffmpeg_writer.FFMPEG_BINARY", "false")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(OSError, match=r"No space left on device: .*x\.mp4"):
        media.save(tmp_path / "x.mp4", [dream()], rate=8.0)
