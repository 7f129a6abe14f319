"""Plots: pages are drawn whole, the same each time, and hold what was asked."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from worldmodel.errors import ConfigError
from worldmodel.media.plots import Bar, Line, Panel, Shares, metrics_panels, save_panels, smooth


@pytest.fixture(autouse=True)
def pages_are_rendered_once() -> None:
    """Not here: every page is rendered."""


def panels() -> list[Panel]:
    x = np.arange(1, 31)
    dream, baseline = Line(x, 30 - x / 3, 29 - x / 3, 31 - x / 3), Line(x, 20 - x / 3, dashed=True)
    return [
        Panel("open loop", {"dream": dream, "last frame": baseline}, "step", "PSNR [dB]"),
        Panel("loss", {"loss": Line(np.arange(500), np.exp(-np.arange(500) / 100), noisy=True)}, "step", scale="log"),
        Panel(
            "obeyed", {"real": Bar(0.9, 0.8, 0.95), "dreamt": Bar(0.8), "none": Bar(np.nan)}, mark=0.81, mark_name="x"
        ),
        Panel("confusion", Shares(np.eye(2), ["left", "right"], ["left", "right"])),
    ]


def ink(path: Path) -> int:
    """Number of pixels that are not white."""
    with Image.open(path) as picture:
        return int((np.asarray(picture.convert("L")) < 250).sum())


def test_a_page_is_drawn_and_no_part_of_it_is_left_behind(tmp_path: Path) -> None:
    path = save_panels(tmp_path / "new" / "page.png", panels(), title="evaluation")
    with Image.open(path) as picture:
        assert picture.size == (round(4.2 * 3 * 130), round(6.2 * 130))
    assert ink(path) > 5000
    assert ink(save_panels(tmp_path / "fewer.png", panels()[:1], columns=1)) < ink(path) / 2
    assert [p.name for p in path.parent.iterdir()] == ["page.png"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_panels_give_the_same_file(tmp_path: Path, suffix: str) -> None:
    first, second = (save_panels(tmp_path / f"{name}{suffix}", panels()).read_bytes() for name in "ab")
    assert first == second


def svg(path: Path, drawn: list[Panel]) -> str:
    with mpl.rc_context({"svg.fonttype": "none"}):  # letters stay letters
        return save_panels(path, drawn).read_text()


def test_what_is_drawn_is_named(tmp_path: Path) -> None:
    text = svg(tmp_path / "page.svg", panels())
    for word in ("open loop", "PSNR [dB]", "last frame", "dreamt", "0.9", "none", "confusion", "100%"):
        assert word in text, word


def test_points_are_not_joined(tmp_path: Path) -> None:
    def drawn(points: bool) -> str:
        return svg(tmp_path / "p.svg", [Panel("cloud", {"a": Line([0, 1, 2] * 9, [1, 5, 2] * 9, points=points)})])

    assert drawn(True).count("<use") > drawn(False).count("<use") + 20


def test_lines_of_the_same_names_share_one_legend(tmp_path: Path) -> None:
    loop = panels()[0]
    assert svg(tmp_path / "one.svg", [loop]).count(">last frame<") == 1
    assert svg(tmp_path / "two.svg", [loop, loop, *panels()[1:]]).count(">last frame<") == 1


def test_a_failed_page_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(b"earlier")

    def fill_the_disk(figure: Figure, part: Path, **options: object) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        save_panels(path, panels())
    assert [p.name for p in tmp_path.iterdir()] == ["page.png"] and path.read_bytes() == b"earlier"


def test_what_cannot_be_plotted_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"page\.bmp.*\.png, \.svg, \.pdf"):
        save_panels(tmp_path / "page.bmp", panels())
    with pytest.raises(ConfigError, match="no measurements"):
        save_panels(tmp_path / "page.png", [])


def test_metrics_become_a_panel_for_each_value_of_each_stage() -> None:
    records = [
        {"stage": "tokenizer", "step": 10, "seconds": 1.0, "learning_rate": 1e-3, "loss": 2.0, "usage": 0.5},
        {"stage": "tokenizer", "step": 20, "seconds": 2.0, "learning_rate": 1e-3, "loss": 1.0, "psnr": None},
        {"stage": "prior", "step": 10, "seconds": 1.0, "learning_rate": 1e-3, "loss": 5.0},
    ]
    drawn = metrics_panels(records)
    assert [panel.title for panel in drawn] == ["tokenizer: loss", "tokenizer: usage", "prior: loss"]
    assert drawn[0].content == {"loss": Line([10, 20], [2.0, 1.0], noisy=True)}


def test_smoothing_is_a_centred_mean_that_leaves_out_gaps() -> None:
    assert smooth([1, 2, 3, 4, 5], 3).tolist() == [1.5, 2, 3, 4, 4.5]
    assert smooth([1, np.nan, 3], 3).tolist() == [1, 2, 3]
    assert np.isnan(smooth([np.nan, np.nan, np.nan, 1], 3)[0])
