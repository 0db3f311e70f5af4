"""What holds for all tests: where CI=true, a test that is skipped has failed.

Of several workers one does all of a file, so that what the file's tests share is made once, and one does all that needs
a lab or the simulator's own processes.  What a test has to tell also when all is well, it records as property SAY.
"""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

SAY = "say"
_ONE_WORKER = ("hosts", "sim")
_TOGETHER = dict.fromkeys(("test_full_disk.py", "test_move.py"), "127.0.0.2")  # both move a host to that address

Report = pytest.TestReport | pytest.CollectReport


def _refuse_skip(report: Report) -> Report:
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI=true: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.path).parent.name
        group = folder if folder in _ONE_WORKER else _TOGETHER.get(item.path.name, item.path.name)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == SAY:
                    terminalreporter.write_line(f"\n{report.nodeid}:\n{text}")
