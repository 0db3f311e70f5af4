"""control - the control socket: JSON lines, one request a line, one answer a line, in order.

request {"op": NAME, ...}    answer {"ok": {...}} or {"error": {"code": CODE, "message": SENTENCE}}
codes: bad_request, not_found, refused, timeout, peer_lost, io, internal

Both services below answer `status`, `connect`, `disconnect`, `drain`, `limits` and `sockets`; the host's service also
`link`, `greet`, `commit`, `suspend`, `resume`, `stop`, `policy`, `resolve` and `set`.  `sockets` passes the listening
socket back with SCM_RIGHTS.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nbdplugin import tracks
from nbdplugin.engine import start_thread
from nbdplugin.errors import BadRequest, PathError, PeerLost, PeerRefused, Refused

LISTEN_FD = 3  # SD_LISTEN_FDS_START
_LINE_MOST = 64 << 10
_CLIENTS_MOST = 32
_IDLE_S = 600.0
_ACCEPT_PAUSE_S = 0.1

_CODES: dict[type[PathError], str] = {
    BadRequest: "bad_request",
    Refused: "refused",
    PeerRefused: "refused",
    PeerLost: "peer_lost",
    PathError: "timeout",
}

Handler = Callable[[dict[str, Any]], dict[str, Any]]
log = logging.getLogger(__name__)


class Control:
    """Serves `handlers` on a Unix socket that only root may use; each client has a thread, their number a bound."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._places = threading.BoundedSemaphore(_CLIENTS_MOST)
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            raise BadRequest(f"the control socket {path} cannot be made: {error.strerror}") from None
        finally:
            os.umask(mask)
        self._socket.listen(_CLIENTS_MOST)

    def start(self) -> None:
        start_thread("control", self._accept)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError as error:  # out of descriptors, say: this must go on as soon as there are some
                log.warning("the control socket: %s", error)
                time.sleep(_ACCEPT_PAUSE_S)
                continue
            if not self._places.acquire(blocking=False):
                client.close()
                continue
            client.settimeout(_IDLE_S)
            start_thread("control-client", functools.partial(self._serve, client))

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, client.makefile("rb") as lines:
                while line := lines.readline(_LINE_MOST):
                    answer, fds = self._answer(line)
                    socket.send_fds(client, [json.dumps(answer).encode() + b"\n"], fds)
        except OSError:
            return  # the client went away or was idle for too long
        finally:
            self._places.release()

    def _answer(self, line: bytes) -> tuple[dict[str, Any], list[int]]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or request.get("op") not in self._handlers:
                raise BadRequest(f"unknown request; known ops are {', '.join(sorted(self._handlers))}")
            fds = [get_listener()] if request["op"] == "sockets" else []
            return {"ok": self._handlers[request["op"]](request)}, fds
        except ValueError:
            return _error("bad_request", "a request is one line of JSON"), []
        except PathError as error:
            return _error(_get_code(error), str(error)), []
        except Exception as error:
            log.exception("a control request failed")
            return _error("internal", f"internal error: {error!r}"), []


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _get_code(error: PathError) -> str:
    return _CODES.get(type(error), "io")


def get_listener() -> int:
    """The listening socket that socket activation gave us; raises BadRequest if there is none."""
    try:
        if stat.S_ISSOCK(os.fstat(LISTEN_FD).st_mode):
            return LISTEN_FD
    except OSError as error:
        raise BadRequest(f"this process was given no listening socket ({error.strerror})") from None
    raise BadRequest("this process was given no listening socket")


def get_text(request: dict[str, Any], key: str) -> str:
    """A string field; raises BadRequest without one."""
    value = request.get(key)
    if not isinstance(value, str) or not value or len(value) > 4096:
        raise BadRequest(f"{request.get('op')} needs {key}")
    return value


def get_side(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if value not in ("source", "destination"):
        raise BadRequest(f"{key} is source or destination, not {value!r}")
    return str(value)


def get_policy(request: dict[str, Any]) -> str:
    value = request.get("on_path_loss")
    if value not in (tracks.CONTINUE, tracks.STOP):
        raise BadRequest(f"on_path_loss is {tracks.CONTINUE} or {tracks.STOP}, not {value!r}")
    return str(value)
