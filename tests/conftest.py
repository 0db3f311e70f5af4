"""What holds for all tests: where CI=true, a test that is skipped has failed.

What a test has to tell also when all is well, it records as property SAY: a worker's own output is not seen.
"""

import os
import signal
from collections.abc import Generator

import pytest

SAY = "say"
LIVE_LIMIT_S = 300  # of a test with real processes; each of its waits has a limit of its own, and says what for

# A shell has what it runs in the background ignore Ctrl-C, and so would every program that a test begins.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_live = item.path.parent.name in ("live", "hosts")
        if is_live and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIVE_LIMIT_S))


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == SAY:
                    terminalreporter.write_line(f"\n{report.nodeid}:\n{text}")
