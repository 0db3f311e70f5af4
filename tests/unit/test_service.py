"""How long a destination takes the silence of its source for life."""

import json
import struct
import threading
import time
import uuid

import pytest
from waiting import WAIT_S, wait_until

from nbdplugin import lineage, metafile, service
from nbdplugin.errors import SessionOver
from nbdplugin.params import Params
from nbdplugin.store import Store
from nbdplugin.tracks import Header

SIZE = 1 << 20
SILENCE_S = 5.0
LENGTH = struct.Struct(">I")


class SlowStore(Store):
    """Its syncs end when they are let go."""

    def __init__(self, path, size):
        super().__init__(path, size)
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.is_syncing = False

    def sync(self):
        self.is_syncing = True
        assert self.goes_on.wait(WAIT_S)
        super().sync()


@pytest.fixture
def store(tmp_path):
    (tmp_path / "img").write_bytes(bytes(SIZE))
    return SlowStore(tmp_path / "img", SIZE)


class Clock:
    """What the service takes for the time; it goes on when it is told to."""

    now = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return time.time()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(service, "time", clock)
    return clock


@pytest.fixture
def source(tmp_path, store, clock, monkeypatch):
    """The meta connection of a source whose session is open and pushes."""
    monkeypatch.setattr(service, "HEARD_SPARE_S", 0.0)
    path = tmp_path / "meta"
    metafile.create(path, Header(str(uuid.uuid4()), SIZE, 65536, "old"))
    params = Params("peer", "v", path, tmp_path / "img", tmp_path / "ctl", link_timeout_s=SILENCE_S)
    owner = service.PeerService(params, metafile.MetaFile(path), store)
    owner.engine.run(owner.target.connect("operation", "pair", "alpha", "destination"))
    meta = owner.open_export("meta")
    greeting = lineage.Greeting("pair", SIZE, 65536, 1, 0, True, "destination", "new", ("old",), True)
    assert ask(meta, op="greet", **greeting.to_json())["verdict"] == "accepted"
    assert ask(meta, op="begin")["ok"]
    yield meta
    owner._control._socket.close()


def ask(meta, **message):
    raw = json.dumps(message).encode()
    meta.write(LENGTH.pack(len(raw)) + raw, 0, False)
    reply = memoryview(bytearray(4096))
    meta.read(reply, 0)
    return json.loads(bytes(reply[4 : 4 + LENGTH.unpack_from(reply)[0]]))


def test_a_closing_message_whose_sync_takes_long_ends_no_session(source, store, clock):
    store.goes_on.clear()
    store.is_syncing = False
    message = {"op": "complete", "generation": "new", "ancestors": ["old"]}
    closing = threading.Thread(target=ask, args=(source,), kwargs=message)
    closing.start()
    wait_until(lambda: store.is_syncing, "the destination syncs")
    clock.now += 3 * SILENCE_S  # the sync takes longer than silence counts as life
    store.goes_on.set()
    closing.join(WAIT_S)
    assert ask(source, op="alive")["ok"]


def test_what_comes_after_a_silence_comes_too_late(source, clock):
    clock.now += 3 * SILENCE_S
    with pytest.raises(SessionOver):
        ask(source, op="alive")
