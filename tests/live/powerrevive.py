"""powerrevive - real processes on what both disks hold after a crash: they find together, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from live.planes import Pair, Plane
from live.powerhistory import SECTOR, find_number
from live.powerrun import NAMES, SECTORS, SIZE, SPOT, SPOTS, TRACK, Ran
from live.powerstates import State


def revive(folder: Path, ran: Ran, state: State) -> None:
    """Raises AssertionError unless both sides become Synchronized, equal, and hold what the host was promised."""
    folder.mkdir()
    for name, image in state.images.items():
        _write_file(folder / name, image)
    planes = [Plane(folder, name, role, SIZE, TRACK) for name, role in zip(NAMES, ("host", "peer"), strict=True)]
    pair = Pair(*planes)
    pair.uuid = ran.pair
    for plane in planes:
        plane.psk_file.write_text(f"{pair.uuid}:{'5a' * 32}\n")
    try:
        for plane in planes:
            plane.start()
        pair.link()
        pair.source.ask("resume", operation="again", pair=pair.uuid)
        _wait_synchronized(state, pair)
        _check_promises(ran, state, pair)
        assert pair.source.read_store() == pair.destination.read_store(), f"{state.what}: the two sides are not equal"
        assert not pair.destination.get_status()["incomplete"]
    finally:
        for plane in planes:
            plane.close()


def _wait_synchronized(state: State, pair: Pair) -> None:
    try:
        pair.wait_synchronized()
    except AssertionError as error:
        names = ("link", "link_error", "verdict", "session", "invalid", "owed", "complete", "failed", "copy_error")
        found = {name: value for name, value in pair.source.get_status().items() if name in names}
        raise AssertionError(f"{state.what}: {error}: {found}") from None


def is_paired(ran: Ran, state: State) -> bool:
    """Whether the pair was one for certain."""
    return ran.committed_ns < state.instant_ns < ran.parted_ns


def _write_file(path: Path, image: bytearray) -> None:
    is_metadata = path.suffix == ".meta"
    with path.open("wb") as file:
        file.truncate(len(image) if is_metadata else SIZE)
        if is_metadata:
            for at in range(0, len(image), TRACK):
                if any(image[at : at + TRACK]):
                    file.seek(at)
                    file.write(image[at : at + TRACK])
        else:
            for index, spot in enumerate(SPOTS):
                file.seek(spot)
                file.write(image[index * SPOT : (index + 1) * SPOT])


def _check_promises(ran: Ran, state: State, pair: Pair) -> None:
    with pair.source.open() as handle:
        for spot in SPOTS:
            data = handle.pread(SPOT, spot)
            for at in range(SECTORS):
                sector = spot // SECTOR + at
                number = find_number(data[at * SECTOR : (at + 1) * SECTOR], sector)
                may = ran.history.get_allowed(sector, state.instant_ns, is_killed=not state.lost)
                assert number in may, f"{state.what}: sector {sector} reads as write {number}, not one of {sorted(may)}"
