"""Stores on object storage, against an S3 server on this machine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from moving_square import SPEC, record
from test_elastic import SETTINGS

from worldmodel.data import records
from worldmodel.data.store import EpisodeStore
from worldmodel.data.windows import Windows
from worldmodel.errors import DataError
from worldmodel.runs.folder import load_config, open_data
from worldmodel.train import main

pytest.importorskip("s3fs", reason="needs the extra s3-test")
server = pytest.importorskip("moto.server", reason="needs the extra s3-test")
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of several shards of about 50 KB."""
    monkeypatch.setattr(records, "SHARD_BYTES", 200_000)
    with EpisodeStore.writer(tmp_path / "local", SPEC) as store:
        for seed in range(11):
            store.append(record(seed))
    return tmp_path / "local"


@pytest.fixture
def url(endpoint: str, local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The same store in a bucket."""
    import s3fs

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint, "WORLDMODEL_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"data-{uuid.uuid4().hex[:8]}"
    files = s3fs.S3FileSystem()
    files.mkdir(bucket)
    files.put(str(local), f"{bucket}/maze", recursive=True)
    return f"s3://{bucket}/maze"


def cached(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/*/shard-*.frames"))


def test_windows_equal_those_of_the_local_store(url: str, local: Path, tmp_path: Path) -> None:
    windows = [Windows(EpisodeStore.open(path), "train", 5, lead=2) for path in (local, url)]
    assert not cached(tmp_path)  # frames are copied when they are needed
    for step in range(4):
        one, other = (each.sample(8, torch.Generator().manual_seed(step)) for each in windows)
        assert torch.equal(one.frames, other.frames) and torch.equal(one.actions, other.actions)
    assert len(cached(tmp_path)) == len(list(local.glob("shard-*.frames"))) > 1


def test_the_cache_keeps_to_its_size(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WORLDMODEL_CACHE_GB", "0.0004")  # two shards
    store = EpisodeStore.open(url)
    assert "set WORLDMODEL_CACHE_GB" in caplog.text
    for index in range(len(store)):
        store.episode(index)  # which compares the checksum
    assert 0 < sum(path.stat().st_size for path in cached(tmp_path)) <= 400_000
    assert len(list((tmp_path / "local").glob("shard-*.frames"))) > 2


def test_training_reads_it_and_collect_does_not_write(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"data={url}", f"runs={tmp_path / 'runs'}", "run=one", *SETTINGS, "--steps=3", "--stage=tokenizer"]
    assert main(words) == 0, capfd.readouterr().err
    run = tmp_path / "runs" / "one"
    assert load_config(run).data == url and len(open_data(run)) == 11
    with pytest.raises(DataError, match=r"can only be read; record into a local folder"):
        EpisodeStore.writer(url, SPEC)


def test_damage_is_reported_when_a_shard_is_copied(url: str, local: Path, tmp_path: Path) -> None:
    import s3fs

    content = bytearray((local / "shard-00000.frames").read_bytes())
    content[100] ^= 1
    s3fs.S3FileSystem().pipe_file(f"{url}/shard-00000.frames", bytes(content))
    with pytest.raises(DataError, match=r"s3://.* episode 0 is damaged \(wrong checksum\)"):
        EpisodeStore.open(url).episode(0)
    assert not cached(tmp_path)


def test_errors_are_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with pytest.raises(DataError, match="no such bucket or folder"):
        EpisodeStore.open("s3://no-such-bucket/maze")
    with pytest.raises(DataError, match=r"cannot be read: .*nothing"):
        EpisodeStore.open("nothing://bucket/maze")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match="no credentials"):
        EpisodeStore.open(url)

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(DataError, match=r"pip install -e '\.\[s3\]'"):
        EpisodeStore.open(url)
