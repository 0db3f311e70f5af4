"""The pure parts of the benchmark: what is asked of fio, what is made of its answer, and what is told of a figure."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from bench import chart, facts, fio, main, report, throughput
from bench.figures import Bar, Figure
from bench.fio import KIB, Pattern
from bench.product import State
from bench.stage import FILE, MIRROR, Subject, get_ours
from rich.console import Console

MET = Figure("copy", "1 GiB there", "MB/s", (90.0, 110.0, 100.0), "nbdcopy", (100.0, 100.0, 50.0), Bar(0.9))
MISSED = Figure("scale", "memory of a pair", "MiB", (36.0, 33.0), bar=Bar(30, at_most=True))
PLAIN = Figure("copy", "with holes", "MB/s", (1234.0,), "nbdcopy", (1000.0,))


def answer(read: float = 0.0, write: float = 0.0, error: int = 0) -> str:
    job = {"error": error, "read": {"iops": read, "bw_bytes": read * 4096}, "write": {"iops": write, "bw_bytes": 0}}
    return "nbd: connected to the server\n" + json.dumps({"jobs": [job]})


# -- fio


def test_fio_is_asked_for_a_pattern() -> None:
    command = fio.build_command(Pattern("randrw", 4 * KIB, 16, clients=4, reads=70), Path("/run/x.sock"), 1 << 30, 2.5)
    assert {"--rw=randrw", "--bs=4096", "--iodepth=16", "--numjobs=4", "--rwmixread=70"} <= set(command)
    assert {"--uri=nbd+unix:///?socket=/run/x.sock", "--size=1073741824", "--runtime=2500ms", "--time_based"} <= set(
        command
    )


def test_clients_that_go_straight_on_have_a_part_of_the_volume_each() -> None:
    command = fio.build_command(Pattern("write", 256 * KIB, 16, clients=4), Path("/s"), 1 << 30, 1)
    assert {"--size=268435456", "--offset_increment=268435456"} <= set(command)


def test_the_speed_is_that_of_reads_and_writes_together() -> None:
    assert fio.read_speed(fio.parse(answer(70.0, 30.0)), "IOPS") == 100.0
    assert fio.read_speed(fio.parse(answer(1000.0)), "MB/s") == pytest.approx(4.096)


@pytest.mark.parametrize("output", ["fio: connection refused\n", answer(1.0, error=5)])
def test_an_answer_without_a_figure_is_an_error(output: str) -> None:
    with pytest.raises(fio.FioError):
        fio.parse(output)


def test_no_requests_at_all_are_an_error_and_no_figure() -> None:
    with pytest.raises(fio.FioError, match="moved nothing"):
        fio.read_speed(fio.parse(answer()), "IOPS")


@pytest.mark.parametrize("runtime", [300, 4000])
def test_a_load_that_lasted_another_time_is_an_error(runtime: int) -> None:
    with pytest.raises(fio.FioError, match="lasted"):
        fio.check_time({"read": {"runtime": 0}, "write": {"runtime": runtime}}, 0.5)


# -- what is compared with what


def test_a_comparison_makes_its_figure_of_the_values_of_the_round() -> None:
    comparison = throughput.Comparison(throughput.WRITE, get_ours(State.SYNCHRONIZED), MIRROR, 1.3)
    figure = comparison.build_figure({get_ours(State.SYNCHRONIZED): [20.0, 30.0], MIRROR: [10.0, 20.0], FILE: [1.0]})
    assert figure.values == (2.0, 1.5)
    assert figure.name == "random write 4K d16, synchronized"
    assert figure.holds


def test_every_state_and_every_pattern_is_measured_in_clear_and_with_tls() -> None:
    comparisons = (*throughput.BARS, *throughput.build_lasting(), *throughput.build_copying())
    measured = {(one.pattern, one.ours) for one in comparisons}
    for pattern in throughput.PATTERNS:
        for state in (State.UNPAIRED, State.SYNCHRONIZED, State.SUSPENDED):
            assert (pattern, get_ours(state)) in measured
        assert (pattern, get_ours(State.SYNCHRONIZED, is_plain=False)) in measured
    subjects = {subject for _, subject in measured}
    for state in (State.TO_DESTINATION, State.TO_SOURCE):
        assert {Subject("pathctl", state), Subject("pathctl", state, is_plain=False)} <= subjects
    assert len({(one.pattern, one.subjects) for one in comparisons}) == len(comparisons), "nothing is measured twice"


# -- what is told


def test_a_ratio_is_of_each_round_and_the_figure_is_their_median() -> None:
    assert MET.values == (0.9, 1.1, 2.0)
    assert (MET.value, MET.spread, MET.holds) == (1.1, (0.9, 2.0), True)


def test_the_table_names_figures_bars_and_what_is_missed() -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(report.build_table([MET, PLAIN, MISSED]))
    lines = console.export_text().splitlines()
    assert any("1 GiB there" in line and ">= 0.9" in line and " met " in line for line in lines)
    assert any("memory of a pair" in line and "<= 30" in line and "MISSED" in line for line in lines)
    assert any("with holes" in line and "1,230 MB/s" in line for line in lines)


def test_the_document_can_be_read_back_with_every_round_in_it() -> None:
    document = json.loads(json.dumps(report.build_document([MET, MISSED], {"cpu": "x"}, {"scale": "ended"})))
    first, second = document["figures"]
    assert first["ours"] == [90.0, 110.0, 100.0]
    assert (first["value"], first["holds"], first["bar"]) == (1.1, True, {"limit": 0.9, "at_most": False})
    assert (second["theirs"], second["holds"]) == ([], False)
    assert document["failed"] == {"scale": "ended"}


def test_what_is_quoted_has_the_figures_with_a_bar_only() -> None:
    text = report.build_markdown([MET, PLAIN, MISSED])
    assert "| 1 GiB there | 100 MB/s | nbdcopy | 100 MB/s | 1.1 | 0.9 - 2 | >= 0.9 | met |" in text
    assert "with holes" not in text


def test_the_summary_names_what_is_missed() -> None:
    assert report.summarize([MET, PLAIN, MISSED]) == "3 figures; 1 of 2 bars met\n  missed: memory of a pair"


@pytest.mark.parametrize(
    ("figure", "value", "scaled"), [(MET, 1.8, 2.0), (MISSED, 60.0, 0.5), (MISSED, 15.0, 2.0), (MISSED, -1.0, 100.0)]
)
def test_more_is_better_in_the_picture_whatever_the_bar_is(figure: Figure, value: float, scaled: float) -> None:
    assert chart.scale(figure, value) == pytest.approx(scaled)


@pytest.mark.parametrize(
    ("text", "version"),
    [("nbdkit 1.32.5 (nbdkit-1.32.5-1)", "1.32.5"), ("fio-3.33", "3.33"), ("no fio here", "no fio here")],
)
def test_versions_are_found_in_what_programs_say(text: str, version: str) -> None:
    assert facts.find_version(text) == version


def test_the_processor_is_found() -> None:
    assert facts.find_model("processor : 0\nmodel name\t: Quick 9000\nflags : a b\n") == "Quick 9000"


def test_a_group_that_fails_does_not_take_the_others_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    options = main.Options(1, 0.1, True, tmp_path, said.append)
    monkeypatch.setitem(main.GROUPS, "nothing", ("nosuchmodule",))
    figures, failed = main.measure(options, ["nothing"])
    assert figures == []
    assert failed == {"nosuchmodule": "ModuleNotFoundError: No module named 'bench.nosuchmodule'"}
    assert "FAILED" in said[-1]
