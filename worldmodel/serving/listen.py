"""Opens the port and runs the application until Ctrl-C."""

import contextlib
import ipaddress
import logging
import os
import socket
import threading
import webbrowser
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from worldmodel.errors import ConfigError

EVERY = ("", "0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Whether only programs on this computer reach a host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket. Raises :class:`ConfigError` for a port in use, or a host that is not this computer's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=64)
    except socket.gaierror as error:
        raise ConfigError(f"--host {host}: there is no such host; give an address of this computer") from error
    except OSError as error:
        fault = f"cannot listen at {host}:{port} ({os.strerror(error.errno or 0)})"
        raise ConfigError(f"{fault}; choose another --port, or 0 for any that is free") from error


def address(host: str, port: int, token: str | None) -> str:
    """What a visitor opens; of all addresses of this computer, its name."""
    if host in EVERY:
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


class Stoppable(uvicorn.Server):
    """A server that does not wait for its visitors to leave."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.force_exit = True


def listen(app: ASGIApp, opened: socket.socket, url: str, message_bytes: int, browse: bool) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    plain: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "server_header": False}
    # Characters have up to four bytes, and compression would delay every frame.
    sockets: dict[str, Any] = {"ws_max_size": 4 * message_bytes, "ws_per_message_deflate": False}
    server = Stoppable(uvicorn.Config(app, ws="websockets-sansio", **sockets, **plain))
    if browse:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt), opened:
        server.run(sockets=[opened])
