"""The statements that the product makes, one test each, with real daemons on two lab hosts.

    1-12   source connection first, by pathctld's API          13-24  the same, destination connection first
    25-33  source first, through the installed program         34-39  destination first, through the program

The test of statement N has the id `statement-N`; README maps the numbers to what they say, scripts/mutate shows that
each test fails once the behaviour behind it is switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import lablib
import pytest
from hosts.scene import MIB, SIZE, TRACK, TRACKS, Failed, Scene, make_bytes, read_device, write_device
from waiting import wait_until

_WAYS = {range(1, 13): ("source", "api"), range(13, 25): ("destination", "api")}
_WAYS |= {range(25, 34): ("source", "program"), range(34, 40): ("destination", "program")}


def statements(*numbers: int) -> Callable[..., object]:
    """Runs the test once for each statement, the scene set up its way."""
    ids = [f"statement-{number:02d}" for number in numbers]
    return pytest.mark.parametrize("scene", numbers, indirect=True, ids=ids)


@pytest.fixture
def scene(request: pytest.FixtureRequest, shared_lab: lablib.Lab, faults: Path) -> Iterator[Scene]:
    number: int = request.param
    first, by = next(way for numbers, way in _WAYS.items() if number in numbers)
    scene = Scene(shared_lab, faults, f"v{number}", first, by)
    yield scene
    scene.end()


def is_source_ready(scene: Scene) -> bool:
    plane = scene.get_plane(scene.alpha)
    assert plane["pair"] is not None
    return bool(plane["ready"] or plane["committed"] or plane["session"])


@statements(1, 13, 25, 34)
def test_connections_are_made_one_after_the_other_and_the_source_is_ready_last(scene: Scene) -> None:
    scene.make_volumes(make_bytes(), make_bytes())
    first, second = (scene.alpha, scene.beta) if scene.first == "source" else (scene.beta, scene.alpha)

    with scene.paused("first", "destination", copy_rate_bytes_s=0) as go_on_to:
        assert [row["ready"] for row in scene.get_rows(first)] == [False]
        assert scene.get_rows(second) == []
        if scene.first == "source":
            assert not is_source_ready(scene)

        go_on_to("second")
        assert [row["invalidated"] for row in scene.get_rows(second)] == ["destination"]
        assert [row["ready"] for host in (first, second) for row in scene.get_rows(host)] == [False, False]
        assert not is_source_ready(scene)
        assert scene.get_plane(scene.alpha)["owed"] == 0

    assert [row["ready"] for host in (first, second) for row in scene.get_rows(host)] == [True, True]
    assert is_source_ready(scene)
    assert scene.get_plane(scene.alpha)["owed"] == TRACKS


@statements(2, 14, 26, 35)
def test_either_volume_or_both_are_created_as_part_of_it(scene: Scene) -> None:
    for alpha, beta in ((None, make_bytes()), (make_bytes(), None), (None, None)):
        scene.make_volumes(alpha, beta)
        invalidate = "source" if alpha is None else "destination"
        size = {"size": SIZE} if alpha is beta is None else {}

        scene.create(invalidate, create=True, **size)

        scene.wait_synchronized()
        wanted = alpha or beta or bytes(SIZE)
        assert scene.alpha.image(scene.name).read_bytes() == wanted
        assert scene.beta.image(scene.name).read_bytes() == wanted
        scene.end()


def check_row(scene: Scene, host: lablib.Host, side: str, peer: str) -> None:
    scene.make_volumes()
    assert scene.get_rows(host) == []
    scene.create("destination")
    (row,) = scene.get_rows(host)
    found = (row["side"], row["peer"], row["peer_volume"], row["invalidated"], row["ready"])
    assert found == (side, peer, scene.name, "destination", True)
    scene.alpha.call("pair.delete", pair=scene.name, force=True)
    assert scene.get_rows(host) == []


@statements(3, 15, 27, 36)
def test_the_source_connection_modifies_the_source_hosts_table(scene: Scene) -> None:
    check_row(scene, scene.alpha, "source", "beta")


@statements(4, 16, 28, 37)
def test_the_destination_connection_modifies_the_destination_hosts_table(scene: Scene) -> None:
    check_row(scene, scene.beta, "destination", "alpha")


def arrange_that_the_second_connection_fails(scene: Scene) -> None:
    """The destination is attached on its own host; or the source's data plane has a reason to say no."""
    scene.make_volumes(make_bytes(), make_bytes())
    if scene.first == "source":
        scene.beta.call("attach", volume=scene.name)
        return
    by, scene.by = scene.by, "api"  # a pair given up before its data came leaves the source without valid tracks
    scene.create("source", copy_rate_bytes_s=0)
    scene.alpha.call("pair.delete", pair=scene.name, force=True)
    scene.by = by
    wait_until(lambda: scene.get_volume(scene.alpha)["pair"] is None, "the pair is gone")


@statements(5, 17, 29, 38)
def test_when_the_second_connection_fails_the_first_is_destroyed(scene: Scene) -> None:
    arrange_that_the_second_connection_fails(scene)
    before = [scene.get_volume(host) for host in (scene.alpha, scene.beta)]
    first = scene.alpha if scene.first == "source" else scene.beta

    with pytest.raises(Failed), scene.paused("first", "destination"):
        assert len(scene.get_rows(first)) == 1  # it was there

    assert [scene.get_rows(host) for host in (scene.alpha, scene.beta)] == [[], []]
    after = [scene.get_volume(host) for host in (scene.alpha, scene.beta)]
    for old, new in zip(before, after, strict=True):
        assert (new["pair"], new["invalid"], new["incomplete"]) == (None, old["invalid"], old["incomplete"])


@statements(6, 18, 30, 39)
def test_when_the_second_connection_fails_the_caller_gets_the_error(scene: Scene) -> None:
    arrange_that_the_second_connection_fails(scene)

    with pytest.raises(Failed) as caught:
        scene.create("destination")

    first, second = ("source", "destination") if scene.first == "source" else ("destination", "source")
    cause = "is attached" if scene.first == "source" else "is incomplete"
    assert cause in caught.value.text
    assert f"{second} connection" in caught.value.error["failed"]
    assert any(f"{first} connection" in step for step in caught.value.error["done"])
    assert any(f"{first} connection" in step for step in caught.value.error["undone"])
    assert caught.value.error["code"] == "refused"


@statements(7, 19)
def test_every_track_of_the_destination_is_marked_invalid(scene: Scene) -> None:
    scene.make_volumes(make_bytes(), make_bytes())
    scene.create("destination", copy_rate_bytes_s=0)
    plane = scene.get_plane(scene.alpha)
    assert (plane["owed"], plane["invalid"]) == (TRACKS, 0)
    wait_until(lambda: scene.get_plane(scene.beta)["incomplete"], "the destination knows that it is incomplete")


@statements(8, 20)
def test_after_ready_the_data_is_copied_to_the_destination_in_the_background(scene: Scene) -> None:
    data = make_bytes()
    scene.make_volumes(data, make_bytes())
    scene.create("destination")
    scene.wait_synchronized()
    assert scene.beta.image(scene.name).read_bytes() == data == scene.alpha.image(scene.name).read_bytes()
    assert scene.get_plane(scene.alpha)["counters"]["copied_tracks"] == TRACKS


@statements(9, 21, 31)
def test_every_track_of_the_source_is_marked_invalid(scene: Scene) -> None:
    scene.make_volumes(make_bytes(), make_bytes())
    scene.create("source", copy_rate_bytes_s=0)
    plane = scene.get_plane(scene.alpha)
    assert (plane["invalid"], plane["owed"]) == (TRACKS, 0)
    assert not scene.get_plane(scene.beta)["incomplete"]


@statements(10, 22, 32)
def test_after_ready_the_data_is_copied_to_the_source_in_the_background(scene: Scene) -> None:
    data = make_bytes()
    scene.make_volumes(make_bytes(), data)
    scene.create("source")
    scene.wait_synchronized()
    assert scene.alpha.image(scene.name).read_bytes() == data == scene.beta.image(scene.name).read_bytes()
    assert scene.get_plane(scene.alpha)["counters"]["copied_tracks"] == TRACKS


@statements(11, 23)
def test_a_host_read_of_an_invalid_track_gets_the_destinations_data(scene: Scene) -> None:
    data = make_bytes()
    scene.make_volumes(make_bytes(), data)
    device = scene.create("source", copy_rate_bytes_s=0, attach=True)["device"]
    offset = 2 * MIB + 3 * 4096
    served = scene.get_plane(scene.beta)["counters"]["fetched_tracks"]
    invalid = scene.get_plane(scene.alpha)["invalid"]

    assert read_device(device, offset, 4096) == data[offset : offset + 4096]

    wait_until(lambda: scene.get_plane(scene.alpha)["invalid"] < invalid, "the whole track is here")
    assert scene.get_plane(scene.alpha)["invalid"] == invalid - 1
    assert scene.get_plane(scene.beta)["counters"]["fetched_tracks"] == served + 1
    start = offset // TRACK * TRACK
    with scene.alpha.image(scene.name).open("rb") as store:
        store.seek(start)
        assert store.read(TRACK) == data[start : start + TRACK]


@statements(12, 24, 33)
def test_a_host_write_to_part_of_an_invalid_track_is_put_onto_the_destinations_data(scene: Scene) -> None:
    data = bytearray(make_bytes())
    scene.make_volumes(make_bytes(), bytes(data))
    device = scene.create("source", copy_rate_bytes_s=0, attach=True)["device"]
    offset, start = 2 * MIB + 3 * 4096, 2 * MIB
    data[offset : offset + 4096] = written = make_bytes()[:4096]

    write_device(device, offset, written)

    for host in (scene.alpha, scene.beta):
        with host.image(scene.name).open("rb") as store:
            store.seek(start)
            assert store.read(TRACK) == data[start : start + TRACK], host.name
    assert scene.get_plane(scene.beta)["counters"]["fetched_tracks"] >= 1
