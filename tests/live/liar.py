"""liar - an nbdkit plugin script: a peer that says what a test told it to, over TLS as the real one.

    nbdkit --tls=require --tls-psk=FILE python liar.py orders=FILE

The file `orders` is JSON and read anew each time: `meta_size`, `data_size` (bytes); `reply`: what a greeting is
answered with, either {"raw": hex of the whole answer as read} or {"json": object} that changes an acceptance; `line`:
[generation, ancestors] of that acceptance.  Each greeting adds a line to `orders`.asked.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import nbdkit

API_VERSION = 2
LENGTH = struct.Struct(">I")
REPLY = 16 << 10
_orders = {"path": ""}


def config(key: str, value: str) -> None:
    _orders["path"] = value


def thread_model() -> int:
    model: int = nbdkit.THREAD_MODEL_PARALLEL
    return model


class Handle:
    def __init__(self, name: str) -> None:
        self.is_meta = name == "meta"
        self.reply = b""


def read_orders() -> dict[str, Any]:
    orders: dict[str, Any] = json.loads(Path(_orders["path"]).read_text())
    return orders


def open(readonly: bool) -> Handle:
    return Handle(nbdkit.export_name())


def get_size(handle: Handle) -> int:
    return int(read_orders()["meta_size" if handle.is_meta else "data_size"])


def can_write(handle: Handle) -> bool:
    return True


def can_flush(handle: Handle) -> bool:
    return True


def can_multi_conn(handle: Handle) -> bool:
    return True


def pwrite(handle: Handle, buf: bytearray, offset: int, flags: int) -> None:
    if handle.is_meta:
        message = json.loads(bytes(buf[LENGTH.size :]))
        handle.reply = make_reply(message)
        with Path(_orders["path"] + ".asked").open("a") as asked:
            asked.write(f"{message.get('op')}\n")
    else:
        with Path(_orders["path"] + ".asked").open("a") as asked:
            asked.write("write\n")


def make_reply(message: dict[str, Any]) -> bytes:
    orders = read_orders()
    answer: Any = {"ok": True}
    if message.get("op") == "greet":
        reply = orders["reply"]
        if "raw" in reply:
            return bytes.fromhex(reply["raw"])
        answer = {"verdict": "accepted", "message": "", "protocol": 2, "epoch": "e", "session": message["session"]}
        answer["generation"], answer["ancestors"] = orders.get("line") or (message["generation"], message["ancestors"])
        answer |= reply["json"]
    raw = json.dumps(answer).encode()
    return LENGTH.pack(len(raw)) + raw


def pread(handle: Handle, buf: bytearray, offset: int, flags: int) -> None:
    data = handle.reply if handle.is_meta else b""
    buf[:] = data[: len(buf)].ljust(len(buf), b"\0")


def flush(handle: Handle, flags: int) -> None:
    """Nothing is kept."""
