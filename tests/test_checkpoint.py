"""Files of tensors: written whole or not at all, read with one clear line."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worldmodel.errors import RunError
from worldmodel.training.checkpoint import check_fit, load_tensors, save_tensors


def test_round_trip_of_types_shapes_and_facts(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    tensors = {
        "half": torch.randn(3, 5).bfloat16(),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7),
        "view": shared.t(),
        "shared": shared,
    }
    meta = {"step": 3, "elapsed": 0.1 + 0.2, "window": {"names": ["a"], "sums": [1e-17]}}
    save_tensors(tmp_path / "new" / "x.safetensors", tensors, meta)
    loaded, facts = load_tensors(tmp_path / "new" / "x.safetensors", "remedy")
    assert facts == meta
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_failed_write_keeps_the_old_file_and_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError) as caught:
        save_tensors(path, {"a": torch.zeros(2)}, {"step": 2})
    assert caught.value.errno == errno.ENOSPC
    assert load_tensors(path, "")[1] == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    old, young, other = (tmp_path / f".{name}.part.safetensors" for name in ("x.1", "x.2", "y.1"))
    for part in (old, young, other):
        part.touch()
    for part in (old, other):
        os.utime(part, (time.time() - 100_000,) * 2)
    save_tensors(path, {"a": torch.ones(2)})
    assert sorted(tmp_path.iterdir()) == sorted([path, young, other])


def test_others_may_read_what_the_mask_allows(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "foreign", "noise"])
def test_damaged_file_is_one_line_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, {"step": 1})
    whole = path.read_bytes()
    if damage == "foreign":
        save_file({"a": torch.ones(1)}, path)
    else:
        path.write_bytes(
            {"empty": b"", "cut": whole[:-7], "header": whole[:20], "noise": bytes(range(256)) * 9}[damage]
        )
    with pytest.raises(RunError, match=r"x\.safetensors is damaged \(.*\); train it again$") as caught:
        load_tensors(path, "train it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", [-1, -200, b"step", b"other", b"F32"])
def test_one_changed_byte_is_noticed(tmp_path: Path, where: int | bytes) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(100), "other": torch.zeros(2).bfloat16(), "none": torch.ones(0)}, {"step": 1})
    content = bytearray(path.read_bytes())
    if isinstance(where, int):
        content[where] ^= 4
    else:
        place = content.find(where)
        content[place : place + 1] = {b"s": b"t", b"o": b"p", b"F": b"I"}[where[:1]]
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"x\.safetensors is damaged \(wrong checksum\); train it again$"):
        load_tensors(path, "train first", "train it again")


def test_a_wrong_byte_in_the_name_of_the_checksum_does_not_hide_another(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, {"step": 1})
    content = path.read_bytes()
    path.write_bytes(content[:-1].replace(b"crc32", b"crc33") + b"\0")
    with pytest.raises(RunError, match=r"x\.safetensors is damaged"):
        load_tensors(path, "train first")


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors", metadata={"worldmodel": '{"step": 1}'})
    tensors, facts = load_tensors(tmp_path / "x.safetensors", "")
    assert torch.equal(tensors["a"], torch.ones(3)) and facts == {"step": 1}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing\.safetensors is missing; train first"):
        load_tensors(tmp_path / "nothing.safetensors", "train first")


def test_misfits_are_named() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(4)
    check_fit(Path("f"), {"a": a, "b": b}, {"a": b.new_zeros(2, 3), "b": b}, "r")
    with pytest.raises(
        RunError, match=r"^f does not fit the model: a is \(2, 3\) where \(4,\) is expected and 1 more; r$"
    ):
        check_fit(Path("f"), {"a": a, "c": b}, {"a": b}, "r")
    with pytest.raises(RunError, match="b is missing"):
        check_fit(Path("f"), {"a": a}, {"a": a, "b": b}, "r")
    with pytest.raises(RunError, match="c is unknown"):
        check_fit(Path("f"), {"a": a, "c": a}, {"a": a}, "r")
