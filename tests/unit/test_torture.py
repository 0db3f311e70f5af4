"""What the torture's own judges would miss, nobody else would find: each of them is shown what it has to see."""

from __future__ import annotations

import random

import pytest
import torturedata
import torturejudge
from torturedata import CELL, FAILED, MIB, OK, SECTOR, Area, Model, Record
from torturejudge import Fault, Judge, Sample

TRACK = 65536
SIZE = 16 * MIB


def write(sequence: int, outcome: str = OK, kind: str = "w", offset: int = 0, length: int = CELL) -> Record:
    return Record(0, sequence, kind, offset, length, 0.0, 0.1, outcome)


# -- contents


def test_a_sector_says_who_wrote_it_and_where() -> None:
    data = torturedata.make(3, 77, 5 * CELL, 2 * CELL)
    assert len(data) == 2 * CELL
    for at in range(0, len(data), SECTOR):
        assert torturedata.identify(bytes(data[at : at + SECTOR]), (5 * CELL + at) // SECTOR) == (3, 77)


@pytest.mark.parametrize("at", [0, 9, 15, 100, SECTOR - 1])
def test_a_flipped_bit_is_seen(at: int) -> None:
    sector = bytearray(torturedata.make(3, 77, 0, SECTOR))
    sector[at] ^= 1
    assert isinstance(torturedata.identify(bytes(sector), 0), str)


def test_a_sector_of_another_place_is_seen() -> None:
    assert "sector 0" in str(torturedata.identify(bytes(torturedata.make(3, 77, 0, SECTOR)), 1))


def test_an_acknowledged_write_that_is_gone_is_seen() -> None:
    model = Model(0)
    model.note(write(1))
    model.note(write(2))
    assert model.find_fault(0, torturedata.make(0, 2, 0, CELL)) is None
    assert "request 1 of writer 0" in str(model.find_fault(0, torturedata.make(0, 1, 0, CELL)))
    assert "zeroes" in str(model.find_fault(0, bytes(CELL)))
    assert "writer 5" in str(model.find_fault(0, torturedata.make(5, 2, 0, CELL)))


def test_one_old_sector_within_a_new_cell_is_seen() -> None:
    model = torturedata.replay(0, [write(1), write(2)])
    data = torturedata.make(0, 2, 0, CELL)
    data[-SECTOR:] = torturedata.make(0, 1, CELL - SECTOR, SECTOR)
    assert f"offset {CELL - SECTOR} " in str(model.find_fault(0, data))


def test_a_write_that_failed_may_be_there_or_not_until_the_next_is_acknowledged() -> None:
    old, new = torturedata.make(0, 1, 0, CELL), torturedata.make(0, 2, 0, CELL)
    model = torturedata.replay(0, [write(1), write(2, FAILED)])
    torn = new[:SECTOR] + old[SECTOR:]
    assert [model.find_fault(0, data) for data in (old, new, torn)] == [None] * 3
    model.note(write(3))
    assert all(model.find_fault(0, data) for data in (old, new, torn))


def test_zeroes_are_what_a_cell_holds_before_any_write_and_after_it_was_zeroed() -> None:
    model = Model(0)
    assert model.find_fault(0, bytes(CELL)) is None
    model.note(write(1))
    model.note(write(2, kind="z"))
    assert model.find_fault(0, bytes(CELL)) is None
    assert model.find_fault(0, torturedata.make(0, 1, 0, CELL))


def test_no_cell_belongs_to_two_writers_and_requests_stay_within_their_own() -> None:
    areas = [Area(writer, 8, SIZE) for writer in range(8)]
    owners = [sum(area.owns(cell) for area in areas) for cell in range(SIZE // CELL)]
    assert set(owners) <= {0, 1}
    assert owners.count(1) > 0.95 * len(owners)
    rng = random.Random(1)
    for area in areas:
        for _ in range(2000):
            offset, length = area.choose(rng)
            assert length > 0
            assert all(area.owns(cell) for cell in range(offset // CELL, (offset + length) // CELL))


def test_a_log_is_read_as_it_was_written() -> None:
    record = Record(3, 9, "w", CELL, 2 * CELL, 12.25, 13.5, FAILED)
    assert torturedata.parse(record.to_line()) == record


# -- time


def request(kind: str, start: float, end: float, writer: int = 0, offset: int = 0, outcome: str = OK) -> Record:
    return Record(writer, 1, kind, offset, CELL, start, end, outcome)


def judge(records: list[Record], faults: list[Fault], control: list[Record] | None = None) -> Judge:
    return Judge(records, control or [], faults, 4, TRACK, 10.0)


@pytest.mark.parametrize("kind", ["r", "w", "z"])
@pytest.mark.parametrize("writer", [0, 7])
def test_a_request_over_a_second_without_a_fault_is_seen(kind: str, writer: int) -> None:
    stalls = judge([request(kind, 10, 11.5, writer)], []).find_stalls(False)
    assert len(stalls.over) == 1
    assert stalls.valid_s == pytest.approx(1.5)


def test_a_write_that_a_cut_caught_has_the_links_time_out_and_two_seconds() -> None:
    cut = Fault("cut", 5, 30, onsets=[5])
    assert judge([request("w", 4, 16.9)], [cut]).find_stalls(False).over == []
    assert judge([request("w", 4, 16.9)], [cut]).find_stalls(False).mirrored_s == pytest.approx(11.9)
    assert judge([request("w", 4, 17.1)], [cut]).find_stalls(False).over != []
    assert judge([request("w", 18, 19.5)], [cut]).find_stalls(False).over != []  # it is noticed by then


def test_a_read_is_not_excused_by_a_cut() -> None:
    assert judge([request("r", 6, 7.5)], [Fault("cut", 5, 30, onsets=[5])]).find_stalls(False).over != []


def test_a_request_is_excused_while_its_own_process_stands_still() -> None:
    frozen = Fault("freeze", 5, 9, freezes=frozenset({"device"}))
    stalls = judge([request("r", 4, 9.5, writer=0), request("r", 4, 9.5, writer=4)], [frozen]).find_stalls(False)
    assert stalls.own_s == pytest.approx(5.5)
    assert len(stalls.over) == 1  # the socket's


def test_a_read_of_an_invalid_track_may_wait_and_later_ones_may_not() -> None:
    first, second = request("r", 0, 5), request("r", 6, 8)
    other = request("r", 6, 8, offset=TRACK)
    stalls = judge([first, second, other], []).find_stalls(is_pull=True)
    assert stalls.invalid_s == pytest.approx(5)
    assert len(stalls.over) == 1


def test_what_the_machine_took_is_taken_off() -> None:
    late = [request("c", 10.2, 11.4)]
    assert judge([request("r", 10, 11.5)], [], late).find_stalls(False).machines == 1
    assert judge([request("r", 10, 11.5)], [], late).find_stalls(False).over == []
    assert judge([request("r", 10, 12.5)], [], late).find_stalls(False).over != []


def test_what_waits_behind_a_flush_of_the_device_is_taken_off_there_only() -> None:
    cut = Fault("cut", 5, 30, onsets=[5])
    flush = request("f", 4, 14, writer=1)
    stalls = judge([flush, request("r", 6, 14.2, writer=0)], [cut]).find_stalls(False)
    assert stalls.over == []
    assert stalls.behind_s == pytest.approx(8)
    assert judge([flush, request("r", 6, 14.2, writer=5)], [cut]).find_stalls(False).over != []
    assert judge([flush, request("r", 6, 15.2, writer=0)], [cut]).find_stalls(False).over != []


def test_a_failed_request_needs_a_reason_at_its_time() -> None:
    failed = request("r", 10, 10.5, writer=5, outcome=FAILED)
    kill = Fault("kill", 10, 12, fails=frozenset({"socket"}))
    assert judge([failed], [kill]).find_unexcused() == []
    assert judge([failed], []).find_unexcused() != []
    assert judge([request("r", 30, 31, writer=5, outcome=FAILED)], [kill]).find_unexcused() != []
    assert judge([request("r", 10, 10.5, writer=0, outcome=FAILED)], [kill]).find_unexcused() != []


# -- bytes


def sample(at: float, session: int | None, owed: int = 0, copied: int = 0, pid: int = 1) -> Sample:
    source: dict[str, int | None] = {"pid": pid, "session": session, "owed": owed, "invalid": 0, "doubtful": False}
    return Sample(at, source, {"pid": pid, "copied_bytes": copied})


def test_only_tracks_written_without_a_session_had_to_be_sent_again_each_once() -> None:
    samples = [sample(0, 1), sample(1, None), sample(2, None, 1), sample(3, None, 2), sample(4, 2, 2), sample(5, 2)]
    records = [
        Record(0, 1, "w", 0, TRACK, 0.2, 0.3, OK),  # mirrored
        Record(0, 2, "w", 0, CELL, 1.2, 1.3, OK),
        Record(0, 3, "w", CELL, CELL, 1.4, 1.5, OK),  # the same track
        Record(0, 4, "w", 2 * TRACK, CELL, 2.2, 2.3, OK),
        Record(0, 5, "w", 3 * TRACK, CELL, 2.4, 2.5, FAILED),
        Record(0, 6, "w", 4 * TRACK, CELL, 0.5, 1.5, OK),  # perhaps there was a session yet
        Record(0, 7, "r", 5 * TRACK, CELL, 2.2, 2.3, OK),
    ]
    assert torturejudge.count_needed(records, samples, TRACK) == 2 * TRACK


def test_a_track_written_in_two_periods_is_needed_twice_if_all_was_sent_between() -> None:
    def down(at: float) -> list[Sample]:
        return [sample(at, None), sample(at + 1, None, 1)]

    records = [Record(0, n, "w", 0, CELL, at + 0.1, at + 0.2, OK) for n, at in ((1, 1.0), (2, 4.0))]
    once = [*down(1), sample(3, 2, 1), *down(4), sample(6, 3)]
    twice = [*down(1), sample(3, 2, 0), *down(4), sample(6, 3)]
    assert torturejudge.count_needed(records, once, TRACK) == TRACK
    assert torturejudge.count_needed(records, twice, TRACK) == 2 * TRACK


def test_the_destinations_bytes_are_added_up_over_its_processes() -> None:
    samples = [
        sample(0, 1, copied=5),
        sample(1, 1, copied=9),
        sample(2, 1, copied=2, pid=2),
        sample(3, 1, copied=4, pid=2),
    ]
    assert torturejudge.add_up((s.at, s.destination) for s in samples) == 13


def test_too_much_is_more_than_twice_what_was_needed_and_256_extents_for_each_crash() -> None:
    samples = [sample(0, 1, copied=7 * TRACK), sample(1, 1, copied=107 * TRACK)]
    assert torturejudge.count_resent([], samples, [], 107 * TRACK, TRACK).is_too_much is False
    assert torturejudge.count_resent([], samples, [], 106 * TRACK, TRACK).is_too_much is True
    crash = Fault("kill", 0, 1, crash_extents=1)
    assert torturejudge.count_resent([], samples, [crash], 0, TRACK).is_too_much is False
    assert torturejudge.count_resent([], samples, [Fault("cut", 0, 1)], 0, TRACK).is_too_much is True


def test_what_the_first_copy_had_to_bring_anyway_is_left_out() -> None:
    samples = [sample(0, 1, 9, copied=TRACK), sample(1, None, 9), sample(2, 2, 0, copied=9 * TRACK), sample(3, 2, 0)]
    rest, first = torturejudge.skip_first_copy(samples)
    assert (list(rest), first) == (samples[2:], 9 * TRACK)
    assert torturejudge.skip_first_copy(samples[:2]) == ((), 0)
    later = [*rest, sample(4, None), sample(5, None, 1), sample(6, 3, 0, copied=12 * TRACK)]
    records = [Record(0, 1, "w", 0, CELL, 4.1, 4.2, OK)]
    found = torturejudge.count_resent(records, [samples[2], *later[2:]], [], first, TRACK)
    assert (found.resent, found.needed, found.is_too_much) == (3 * TRACK, TRACK, True)


def test_doubt_lasts_from_the_sample_before_to_the_sample_after() -> None:
    states = [False, True, None, True, False, True]
    samples = [
        Sample(float(at), None if is_on is None else {"doubtful": is_on}, None) for at, is_on in enumerate(states)
    ]
    assert torturejudge.find_doubts(samples) == [(0.0, 4.0), (4.0, 5.0)]
    assert torturejudge.find_doubts([]) == []
