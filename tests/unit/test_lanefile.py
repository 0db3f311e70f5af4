"""The lane is used where nbdkit takes it, and where not that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathctl import lanefile, problems


@pytest.fixture(autouse=True)
def _unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanefile._Known, "lane", None)


def test_the_installed_nbdkit_takes_the_lane_that_setup_has_built() -> None:
    found = lanefile.find(lanefile.find_nbdkit(), lanefile.find_plugin())
    assert found.file is not None, found.problem
    assert Path(found.file).is_file()
    assert problems._of_lane() == []


def test_an_nbdkit_of_another_version_goes_without_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "nbdkit"
    other.write_text("#!/bin/sh\necho 'filter is incompatible with this version of nbdkit' >&2\nexit 1\n")
    other.chmod(0o755)
    found = lanefile.find(str(other), lanefile.find_plugin())
    assert found.file is None
    assert "filter is incompatible with this version of nbdkit" in caplog.text
    assert problems._of_lane() == [found.problem]


def test_a_lane_that_was_not_built_is_said(tmp_path: Path) -> None:
    found = lanefile.find(lanefile.find_nbdkit(), str(tmp_path / "plugin.py"))
    assert found.file is None
    assert found.problem is not None
    assert "is not there" in found.problem
    assert "run scripts/setup" in found.problem
