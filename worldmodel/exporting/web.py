"""Static files with which a browser dreams: the page of ``worldmodel.play``, the graphs, and states to start from."""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.errors import ConfigError, DataError
from worldmodel.exporting.graphs import leaves
from worldmodel.serving.dreams import Dreamer, rgba
from worldmodel.serving.keys import page_facts

VERSION = "1.30.0"
ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
HASHES = {
    "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    "ort.webgpu.bundle.min.mjs": "sha384-1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f",
    "ort-wasm-simd-threaded.asyncify.wasm": "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
}
"""Of the files of that version in the npm package onnxruntime-web."""
RUNTIME = {
    "wasm": {"script": "ort.wasm.bundle.min.mjs", "binary": "ort-wasm-simd-threaded.wasm"},
    "webgpu": {"script": "ort.webgpu.bundle.min.mjs", "binary": "ort-wasm-simd-threaded.asyncify.wasm"},
}
"""The two files of ONNX Runtime Web that each backend needs."""
POLICY = (
    "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
    "worker-src 'self'; connect-src 'self' {host}; base-uri 'none'; form-action 'none'"
)
STARTS = 12  # places to choose from


def write_page(dreamer: Dreamer, run: str, manifest: dict[str, Any], folder: Path, runtime: Path | None) -> None:
    """Write all files but the graphs; ``runtime``: a folder of ONNX Runtime Web to copy, None for its public address.

    Raises :class:`ConfigError` for a folder without the runtime, :class:`DataError` without a place to start from.
    """
    where = {"runtime": public_runtime() if runtime is None else copy_runtime(runtime, folder / "runtime")}
    # What the page cannot do without a server is not offered.
    hello = page_facts(run, dreamer.world.spec, beside=False, agent=False, other_starts=False, suffixes=["png"])
    world = {**manifest, "hello": hello, **where, "starts": starts(dreamer)}
    host = "" if runtime is not None else ADDRESS
    for package in ("worldmodel.serving", "worldmodel.exporting"):  # the latter has another connection.js
        for entry in (resources.files(package) / "page").iterdir():
            name = entry.name if entry.name == "index.html" else f"page/{entry.name}"
            (folder / "page").mkdir(exist_ok=True)
            (folder / name).write_bytes(entry.read_bytes())
    index = folder / "index.html"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(host=host)}">\n'
    index.write_text(index.read_text().replace('<meta name="viewport"', policy + '<meta name="viewport"', 1))
    (folder / "world.json").write_text(json.dumps(world, separators=(",", ":")))


def starts(dreamer: Dreamer) -> list[dict[str, Any]]:
    """Places in the recorded episodes: the last seen frame as it is drawn, and the state after it, both in base64."""
    found = []
    for place, frame in dreamer.starts(STARTS, 0):
        moment = dreamer.begin(dreamer.read(place), 0)
        state = {**leaves(moment.state.trunk, "trunk"), "previous": moment.state.previous}
        pixels = base64.b64encode(rgba(frame)).decode()
        texts = {name: base64.b64encode(packed(tensor)).decode() for name, tensor in state.items()}
        found.append({"place": [place.episode, place.first], "pixels": pixels, "state": texts})
    if not found:
        raise DataError(f"no place in {dreamer.store.path} can be read to start from; give another data=…")
    return found


def packed(tensor: Tensor) -> bytes:
    """Little-endian bytes: whole numbers as int32, truth values as uint8, others as float32."""
    kind = {torch.int64: "<i4", torch.bool: "u1"}.get(tensor.dtype, "<f4")
    return tensor.cpu().numpy().astype(kind).tobytes()


def public_runtime() -> dict[str, Any]:
    """Addresses and hashes of the runtime."""
    return {
        backend: {part: {"url": ADDRESS + name, "integrity": HASHES[name]} for part, name in files.items()}
        for backend, files in RUNTIME.items()
    }


def copy_runtime(source: Path, folder: Path) -> dict[str, Any]:
    """Copy the runtime from a folder: the npm package, its ``dist``, or a folder of the files alone. The page uses
    WebGPU only if its files are there."""
    candidates = [source, source / "dist", source / "package/dist", source / "node_modules/onnxruntime-web/dist"]
    found = next((place for place in candidates if (place / RUNTIME["wasm"]["script"]).is_file()), source)
    result: dict[str, Any] = {}
    for backend, files in RUNTIME.items():
        missing = [name for name in files.values() if not (found / name).is_file()]
        if missing and backend == "wasm":
            fault = f"--runtime {source} holds no {missing[0]}"
            command = f"npm pack onnxruntime-web@{VERSION} && tar xzf onnxruntime-web-{VERSION}.tgz"
            raise ConfigError(f"{fault}; give the folder into which the npm package was unpacked: {command}")
        if missing:
            continue
        folder.mkdir(exist_ok=True)
        result[backend] = {}
        for part, name in files.items():
            data = (found / name).read_bytes()
            (folder / name).write_bytes(data)
            result[backend][part] = {"url": f"runtime/{name}", "integrity": integrity(data)}
    return result


def integrity(data: bytes) -> str:
    """The hash of a file as browsers check it."""
    return "sha384-" + base64.b64encode(hashlib.sha384(data).digest()).decode()
