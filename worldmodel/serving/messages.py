"""The messages between the page and the server; docs/play.md describes them.

The page sends JSON as text. The server sends JSON as text, or as binary: the length of a JSON header in four bytes
(little-endian), the header, and the bytes of the parts whose names and lengths the header lists.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from worldmodel.util.ranges import MOST

Index = Annotated[int, Field(ge=0, le=MOST)]
Suffix = Literal["mp4", "gif", "png"]  # of the files that a dream is saved as


class ProtocolError(Exception):
    """A message for which a connection is closed; the text is the reason that is sent to the visitor."""


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Begin(Message):
    """Start a dream at a place in the recorded episodes."""

    type: Literal["begin"]
    episode: Index
    frame: Index  # the first seen frame
    seed: Annotated[int, Field(ge=0, lt=2**53)]  # whole numbers that JavaScript represents


class Environment(Message):
    """Start a dream at the start of the environment, which is then shown beside it."""

    type: Literal["environment"]
    seed: Annotated[int, Field(ge=0, lt=2**53)]


class Step(Message):
    """Dream the next frame."""

    type: Literal["step"]
    action: Annotated[int, Field(ge=0, le=10_000)]
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0


class Drive(Message):
    """Dream the next frame under the action that the agent chooses."""

    type: Literal["drive"]
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0


class Undo(Message):
    """Go back some frames."""

    type: Literal["undo"]
    steps: Annotated[int, Field(ge=1, le=100_000)]


class Starts(Message):
    """Send other places to start from."""

    type: Literal["starts"]
    seed: Index


class Save(Message):
    """Send the dream as a file, from its frame ``first`` on."""

    type: Literal["save"]
    suffix: Suffix
    first: Index = 0


Request = Begin | Environment | Step | Drive | Undo | Starts | Save
_READER: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])


def parse(text: str) -> Request:
    """The message of a text. Raises :class:`ProtocolError` for anything else."""
    try:
        return _READER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"invalid message: {where + ': ' if where else ''}{first['msg']}"[:100]) from error


def pack(header: dict[str, Any], **parts: bytes) -> bytes:
    """A binary message; its header gets ``parts``, a list of names and lengths."""
    listed = [[name, len(part)] for name, part in parts.items()]
    text = json.dumps({**header, "parts": listed}, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *parts.values()])


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Inverse of :func:`pack`: header and parts."""
    end = 4 + int.from_bytes(message[:4], "little")
    header, parts = json.loads(message[4:end]), {}
    for name, length in header.pop("parts"):
        parts[name] = message[end : end + length]
        end += length
    return header, parts
