"""client - asks this host's pathctld over its Unix socket.

One verb is one POST of a JSON object that is answered with another (see api); `metrics` is a GET.  What pathctld
refuses, and what keeps it from being asked, arrives as PathctlError.  Imports the standard library only: the command
line's own start is short.
"""

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from pathctl import errors, signals

VERB_LIMIT_S = 330.0  # pathctld itself ends every verb before that
CONNECT_LIMIT_S = 5.0


def find_root(root: str | None = None) -> Path:
    """`root`, else $PATHCTL_ROOT, else "/"."""
    return Path(root or os.environ.get("PATHCTL_ROOT") or "/").absolute()


def socket_path(root: Path) -> Path:
    return root / "run/pathctl/pathctld.sock"


def call(root: Path, verb: str, limit_s: float = VERB_LIMIT_S, **fields: Any) -> dict[str, Any]:
    """The answer of the pathctld below `root` to one verb; raises PathctlError."""
    status, body = _ask(root, verb, limit_s, "POST", f"/v1/{verb}", json.dumps(fields))
    return _read_answer(verb, status, body)


def metrics(root: Path, limit_s: float = VERB_LIMIT_S) -> str:
    """What pathctld tells Prometheus; raises PathctlError."""
    status, body = _ask(root, "metrics", limit_s, "GET", "/metrics", None)
    if status != http.HTTPStatus.OK:
        raise errors.internal(f"pathctld answered /metrics with HTTP status {status}; see its log")
    return body.decode(errors="replace")


def _ask(root: Path, verb: str, limit_s: float, method: str, path: str, sent: str | None) -> tuple[int, bytes]:
    connection = _UnixConnection(socket_path(root), limit_s)
    try:
        connection.request(method, path, sent, {"Content-Type": "application/json"} if sent else {})
        signals.wait_readable(connection.sock.fileno(), limit_s)
        response = connection.getresponse()
        return response.status, response.read()
    except TimeoutError:
        raise errors.PathctlError(
            errors.ErrorCode.TIMEOUT,
            f"pathctld did not answer {verb} within {limit_s:g} s: what it did is unknown, look with `pathctl status`",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise errors.PathctlError(
            errors.ErrorCode.UNREACHABLE,
            f"pathctld broke off {verb} ({error or type(error).__name__}): what it did is unknown, look with"
            " `pathctl status`, then repeat the command",
        ) from error
    finally:
        connection.close()


def _read_answer(verb: str, status: int, body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise errors.internal(f"pathctld answered {verb} with HTTP status {status} and no JSON object; see its log")
    if status != http.HTTPStatus.OK:
        raise _read_error(verb, status, answer.get("error"))
    return answer


def _read_error(verb: str, status: int, error: object) -> errors.PathctlError:
    fields = error if isinstance(error, dict) else {}
    try:
        code = errors.ErrorCode(str(fields.get("code")))
    except ValueError:
        return errors.internal(f"pathctld answered {verb} with HTTP status {status} and no known error; see its log")
    return errors.PathctlError(
        code,
        str(fields.get("message")),
        done=fields.get("done") or (),
        failed=fields.get("failed"),
        undone=fields.get("undone") or (),
        pending=fields.get("pending") or (),
    )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; a refused connection is told as what it means here."""

    def __init__(self, path: Path, limit_s: float) -> None:
        super().__init__("pathctld", timeout=limit_s)
        self._path = path
        self._limit_s = limit_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(min(CONNECT_LIMIT_S, self._limit_s))
        try:
            self.sock.connect(str(self._path))
        except PermissionError:
            raise errors.PathctlError(
                errors.ErrorCode.REFUSED,
                f"you may not use {self._path}, so nothing was done: repeat the command as root",
            ) from None
        except OSError as error:
            raise _not_running(self._path, error) from None
        self.sock.settimeout(self._limit_s)


def _not_running(path: Path, error: OSError) -> errors.PathctlError:
    if error.errno is None:  # not the kernel's but Python's own: AF_UNIX path too long
        return errors.usage(f"{path} cannot be used as a socket ({error}): choose a root with a shorter name")
    root = path.parents[2]
    command = "pathctld" if str(root) == "/" else f"pathctld --root {root}"
    return errors.PathctlError(
        errors.ErrorCode.UNREACHABLE,
        f"pathctld does not run here, so nothing was done ({path}: {error.strerror}): start it as root with"
        f" `{command}`, or name another root with --root; volumes and devices go on without it unless they were ended"
        " too",
    )
