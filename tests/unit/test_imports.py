"""Imports point one way, also those written inside functions."""

import ast
import itertools
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def imports(path: Path) -> set[str]:
    """The full names of the modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}:{node.lineno}: nbdkit runs the plugin without a package: absolute imports only"
            )
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package(name: str) -> dict[str, set[str]]:
    """Module name -> what it imports, by the first part of the name and in full."""
    return {path.stem: imports(path) for path in sorted((REPO / name).glob("*.py"))}


def importers(name: str, wanted: str) -> list[str]:
    return [module for module, names in package(name).items() if wanted in {full.partition(".")[0] for full in names}]


@pytest.mark.parametrize(("one", "other"), [("nbdplugin", "pathctl"), ("pathctl", "nbdplugin")])
def test_neither_package_imports_the_other(one: str, other: str) -> None:
    assert importers(one, other) == []


@pytest.mark.parametrize(("library", "only"), [("nbdkit", ["plugin"]), ("nbd", ["peer"])])
def test_a_foreign_library_has_one_importer(library: str, only: list[str]) -> None:
    assert importers("nbdplugin", library) == only
    assert importers("pathctl", library) == []


@pytest.mark.parametrize(("name", "library"), [("nbdplugin", "asyncio"), ("nbdplugin", "sqlite3")])
def test_the_data_plane_keeps_to_threads_and_files(name: str, library: str) -> None:
    assert importers(name, library) == []


def test_the_control_plane_starts_no_threads() -> None:
    assert importers("pathctl", "threading") == []


@pytest.mark.parametrize("name", ["nbdplugin", "pathctl"])
def test_no_modules_import_each_other_in_a_circle(name: str) -> None:
    graph = {
        module: {full.partition(".")[2].partition(".")[0] for full in names if full.startswith(f"{name}.")}
        for module, names in package(name).items()
    }
    left = {module: wanted & set(graph) for module, wanted in graph.items()}
    while free := {module for module, wanted in left.items() if not wanted}:
        left = {module: wanted - free for module, wanted in left.items() if module not in free}
    assert left == {}


def test_the_command_line_does_not_reach_into_the_daemon() -> None:
    graph = package("pathctl")
    front = {module for module in graph if module.startswith("cli")}
    front |= {"entry", "signals", "completion", "show", "showstatus", "apart", "units", "progress", "errors"}
    # What works without pathctld is imported where it is used.
    allowed = front | {"config", "settings", "backup", "shapes"}
    used = itertools.chain.from_iterable(graph[module] for module in front if module in graph)
    ours = {full.partition(".")[2].partition(".")[0] for full in used if full.startswith("pathctl.")}
    assert ours <= allowed
