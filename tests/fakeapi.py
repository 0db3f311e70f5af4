"""fakeapi - a pathctld that answers each verb from a table, and one sample of everything it can say.

The samples are made of the structs in shapes, so what the command line is tested with is what pathctld may answer.
"""

import json
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec

from pathctl import cli, client, shapes

Json = dict[str, Any]
Given = Json | tuple[int, Json] | str | Callable[[], Json]

UUID = "0f4c2d1e-1111-4222-8333-444455556666"
BEGAN = 1_763_800_000.0

PROGRESS: Json = msgspec.to_builtins(
    shapes.Progress(
        copy="c1",
        started_at=BEGAN,
        start_tracks=1000,
        added_tracks=24,
        done_tracks=1023,
        left_tracks=1,
        percent=99.9,
        rate_bytes_s=20 << 20,
        eta_s=63.0,
        converging=True,
    )
)
PAIR: Json = msgspec.to_builtins(
    shapes.Pair(
        pair=UUID,
        state="SyncInProg",
        since=BEGAN,
        direction="to_source",
        reason=None,
        side="source",
        source=shapes.End("alpha", "v"),
        destination=shapes.End("beta", "w"),
        invalidated="source",
        ready=True,
        committed=True,
        size=64 << 20,
        track_size=64 << 10,
        tracks=1024,
        invalid=1,
        owed=0,
        waiting=0,
        copy_rate_bytes_s=None,
        copied_bytes=0,
        fetched_tracks=3,
        copied_tracks=1020,
        session=1,
        progress=msgspec.convert(PROGRESS, shapes.Progress),
    )
)
CLAIMS = ("ready", "committed", "invalid", "owed", "waiting", "copy_rate_bytes_s", "copied_bytes", "fetched_tracks")
NOTHING = dict.fromkeys((*CLAIMS, "copied_tracks", "session", "direction", "progress"))
UNHEARD: Json = PAIR | NOTHING | {"state": "Partitioned", "reason": "not heard"}
DONE: Json = PAIR | {"state": "Synchronized", "invalid": 0, "direction": None, "progress": None}
VOLUME: Json = msgspec.to_builtins(
    shapes.Volume(
        name="v",
        uuid="a" * 36,
        size=64 << 20,
        track_size=64 << 10,
        backing="/x/v.img",
        managed=True,
        side=None,
        pair=None,
        attached=False,
        device=None,
        pid=None,
        clients=0,
        invalid=0,
        incomplete=False,
        failed=None,
    )
)
HOST: Json = msgspec.to_builtins(shapes.Host("alpha", "10.0.0.1", 7630, "f" * 64))
PEER: Json = msgspec.to_builtins(shapes.Peer("beta", "10.0.0.2", 7630, "e" * 64, reachable=True, protocol=1))
CONNECTION: Json = msgspec.to_builtins(
    shapes.Connection(UUID, "source", "v", "beta", "w", invalidated="source", ready=True, state="ready", port=7700)
)
EVENT: Json = msgspec.to_builtins(
    shapes.Event(
        id=7,
        at=BEGAN,
        kind="pair.state",
        volume="v",
        pair=UUID,
        peer="beta",
        actor="uid 0 (root)",
        before="SyncInProg",
        after="Suspended",
        cause="pair.suspend",
        message="pair v: suspended",
    )
)
WHY: Json = msgspec.to_builtins(
    shapes.Why(
        pair=UUID,
        state="Suspended",
        since=BEGAN,
        meaning="the path is not ready",
        cause="uid 0 (root) suspended it",
        safe="use the source",
        next="nothing, until it is resumed",
        command="pathctl pair resume v",
    )
)
SETTING: Json = msgspec.to_builtins(
    shapes.Setting("data.link_timeout_s", 5, 5, "s", "default", "how long a silent link counts as there")
)
PLAN: Json = {"plan": {"steps": ["forget it"], "loses": []}}
LOSS = "all 64M (67108864 bytes) of alpha:v are replaced by the data of beta:w"
LOSING: Json = {"plan": {"steps": ["mark it"], "loses": [LOSS]}}

# What every verb of the command line is answered with, unless a test says something else.
ANSWERS: dict[str, Given] = {
    "status": {"host": HOST, "problems": [], "peers": [PEER], "volumes": [VOLUME], "pairs": [PAIR]},
    "host.init": {"host": HOST},
    "host.show": {"host": HOST},
    "host.set": {"host": HOST},
    "peer.invite": {"token": "T", "expires_s": 900},
    "peer.join": {"peer": PEER},
    "peer.set": {"peer": PEER},
    "peer.list": {"peers": [PEER]},
    "connection.list": {"connections": [CONNECTION]},
    "config.show": {"file": "/etc/pathctl/pathctl.toml", "settings": [SETTING]},
    "backup.make": {"file": "/x/b", "contains": ["configuration", "keys"]},
    "volume.create": {"volume": VOLUME},
    "volume.list": {"volumes": [VOLUME]},
    "volume.show": {"volume": VOLUME},
    "volume.delete": {"volume": VOLUME},
    "volume.accept": {"volume": VOLUME},
    "attach": {"volume": VOLUME, "device": "/dev/loop0"},
    "detach": {"volume": VOLUME},
    "pair.create": {"pair": PAIR, "device": "/dev/loop0", "steps": [{"step": "commit", "ms": 1.5}]},
    "pair.list": {"pairs": [DONE]},
    "pair.show": {"pair": DONE},
    "pair.suspend": {"pair": PAIR},
    "pair.resume": {"pair": PAIR},
    "pair.set": {"pair": PAIR},
    "pair.resolve": {"pair": PAIR, "resolved": {"discarded": "source", "steps": [{"step": "commit", "ms": 1.5}]}},
    "pair.delete": {"pair": PAIR},
    "pair.why": {"why": WHY},
    "events.list": {"events": [EVENT]},
    "metrics": "# HELP pathctl_up is up\npathctl_up 1\n",
}


class Api:
    """Answers each verb with what the table has for it, a dry run with the plan; notes what it was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, Json]] = []
        self.answers: dict[str, Given] = dict(ANSWERS)
        self.plan: Json = PLAN
        path = client.socket_path(root)
        path.parent.mkdir(parents=True)
        self.server = socketserver.ThreadingUnixStreamServer(str(path), self._handler())
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                verb = self.path.removeprefix("/v1/")
                fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.asked.append((verb, fields))
                answer = api.plan if fields.get("dry_run") else api.answers[verb]
                assert not isinstance(answer, str)
                status, body = answer if isinstance(answer, tuple) else (200, answer() if callable(answer) else answer)
                self._send(status, json.dumps(body))

            def do_GET(self) -> None:
                api.asked.append((self.path, {}))
                self._send(200, str(api.answers[self.path.removeprefix("/")]))

            def _send(self, status: int, text: str) -> None:
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments: object) -> None:
                pass

        return Handler

    def run(self, *arguments: str) -> int:
        return cli.run(["--root", str(self.root), *arguments])


def states(verb: str, *found: str) -> Callable[[], Json]:
    """Answers of pair.show or pair.list, one after the other, the last for ever."""
    left = list(found)

    def answer() -> Json:
        state = left.pop(0) if len(left) > 1 else left[0]
        pair = DONE if state == "Synchronized" else PAIR | {"state": state}
        return {"pair": pair} if verb == "pair.show" else {"pairs": [pair]}

    return answer
