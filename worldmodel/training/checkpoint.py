"""One file that holds all that a resumed training needs: tensors by name, and plain JSON in the file's own header."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from worldmodel.errors import RunError
from worldmodel.util.files import whole

META_KEY = "worldmodel"
CHECKSUM_KEY = "crc32"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Writes named tensors and JSON facts as one safetensors file, atomically.

    The file appears under its name only when all of it is on the disk: a crash, a full disk or ``kill -9`` leaves the
    previous one.
    """
    # A copy of each, since the format supports neither strides nor tensors that share memory.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    # The library's own writing to files hides the system's error number and gives the file to its owner alone.
    facts = json.dumps(dict(meta or {}))
    content = serialize(plain, metadata={META_KEY: facts, CHECKSUM_KEY: checksum(plain, facts)})
    with whole(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def load_tensors(path: Path, remedy: str, if_damaged: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file written by :func:`save_tensors`, on the CPU.

    Raises :class:`RunError`, one line that ends with ``remedy``, when the file is missing, and with ``if_damaged`` (or
    ``remedy``) when it is cut short, not of this kind or not what was written. Older files have no checksum.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        facts = header.pop(META_KEY)
        if header.pop(CHECKSUM_KEY, None) not in (None, checksum(tensors, facts)) or header:  # nothing else is written
            raise ValueError("wrong checksum")
        return tensors, json.loads(facts)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{path} is damaged ({reason}); {if_damaged or remedy}") from error


def checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    """CRC-32 of names, types, shapes and bytes of all tensors, and of the facts, as eight digits."""
    crc = zlib.crc32(facts.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def check_fit(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], remedy: str) -> None:
    """Raises :class:`RunError` in one line unless both have the same names and shapes."""
    faults = [
        f"{name} is {tuple(found[name].shape)} where {tuple(expected[name].shape)} is expected"
        for name in sorted(set(found) & set(expected))
        if found[name].shape != expected[name].shape
    ]
    faults += [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    faults += [f"{name} is unknown" for name in sorted(set(found) - set(expected))]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise RunError(f"{path} does not fit the model: {faults[0]}{more}; {remedy}")
