"""A destination that was copied in part, and its source's host is gone for good."""

import os
import signal

import pytest
from live import splits
from live.daemons import nbdkits
from waiting import wait_until

from nbdplugin.metafile import MetaFile
from pathctl.errors import ErrorCode, PathctlError

SIZE = 8 << 20
TRACK = splits.TRACK
TRACKS = SIZE // TRACK


def refused(host, verb, **fields):
    with pytest.raises(PathctlError) as caught:
        host.call(verb, **fields)
    assert caught.value.code == ErrorCode.REFUSED
    return caught.value.message


def tracks(data):
    return [data[offset : offset + TRACK] for offset in range(0, SIZE, TRACK)]


def test_what_was_copied_in_part_is_refused_until_it_is_accepted_and_is_exactly_that(hosts):
    alpha, beta = hosts
    before = {}
    for host, name in ((alpha, "va"), (beta, "vb")):
        host.call("volume.create", name=name, size=SIZE)
        before[name] = os.urandom(SIZE)
        host.image(name).write_bytes(before[name])
    alpha.call("pair.create", source="va", destination="beta:vb", invalidate="destination", copy_rate_bytes_s=0)
    alpha.call("pair.set", pair="va", copy_rate_bytes_s=512 << 10)  # what is left takes many times a test's own delays
    wait_until(lambda: alpha.call("pair.show", pair="va")["pair"]["owed"] < TRACKS * 5 // 6, "a sixth is copied")
    splits.write(alpha, "va", TRACKS - 1, b"A")  # of a track that was not copied: it stays owed
    alpha.call("pair.set", pair="va", copy_rate_bytes_s=0)
    wait_until(lambda: not _is_copying(alpha), "the copy stands still")
    alpha.kill()
    for pid in nbdkits(alpha.root):
        os.kill(pid, signal.SIGKILL)
    copied = beta.volume("vb")["counters"]["copied_bytes"] // TRACK  # nobody is there to send more
    assert TRACKS // 6 <= copied < TRACKS
    said = beta.call("pair.why", pair="vb")["why"]
    assert "The copy on this host's volume is incomplete" in said["safe"]
    assert "is a destination" in refused(beta, "attach", volume="vb")
    plan = beta.call("pair.delete", pair="vb", half=True, dry_run=True)["plan"]
    assert "unless `pathctl pair resolve` says whose data is kept" in plan["steps"][0]
    assert "beta:vb is left incomplete, some tracks of it exist only at alpha:va" in plan["steps"][1]
    assert plan["loses"] == ["some tracks of beta:vb exist only at alpha:va and could not be brought over any more"]
    assert beta.call("pair.delete", pair="vb", half=True)["pair"]["reason"] == plan["steps"][1]
    message = refused(beta, "attach", volume="vb")
    assert "volume vb is incomplete" in message
    assert "`pathctl volume accept vb`" in message
    as_copied = beta.image("vb").read_bytes()
    (lost,) = beta.call("volume.accept", name="vb", dry_run=True)["plan"]["loses"]
    assert "which of them only that host knows" in lost
    assert "a mixture of old and new: check it" in lost
    assert beta.volume("vb")["incomplete"], "a dry run accepts nothing"
    assert beta.call("volume.accept", name="vb")["volume"]["incomplete"] is False
    device = beta.call("attach", volume="vb")["device"]
    with open(device, "rb") as file:
        found = file.read()
    assert found == as_copied, "to accept it changes no byte of it"
    _check_exact(alpha, found, before, copied)


def _is_copying(alpha):
    """Nothing is under way once two looks, a command apart, see the same."""
    looks = [alpha.call("pair.set", pair="va", copy_rate_bytes_s=0)["pair"]["copied_tracks"] for _ in range(2)]
    return looks[0] != looks[1]


def _check_exact(alpha, found, before, copied):
    """Each track is wholly the source's or wholly what lay there before, and the source's table tells which."""
    owed = MetaFile(alpha.image("va").with_suffix(".meta"), is_writer=False).table.owed
    source, old = tracks(alpha.image("va").read_bytes()), tracks(before["vb"])
    kinds = [
        "new" if track == source[n] else "old" if track == old[n] else "torn" for n, track in enumerate(tracks(found))
    ]
    assert "torn" not in kinds
    assert [n for n in range(TRACKS) if kinds[n] == "old" and not owed.is_any(n, 1)] == []
    assert kinds.count("new") == copied
    assert kinds[-1] == "old"
    assert source[-1] == b"A" * TRACK
