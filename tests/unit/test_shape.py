"""The tail stays short: no function over 60 lines, no module over 700."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FUNCTION_LINES = 60
MODULE_LINES = 700


def modules() -> list[Path]:
    """Every Python file of the project, also programs without a suffix."""
    found = [path for folder in ("nbdplugin", "pathctl", "scripts", "tests") for path in (REPO / folder).rglob("*.py")]
    programs = [path for path in (REPO / "scripts").iterdir() if path.is_file() and not path.suffix]
    return sorted(found + [path for path in programs if "python" in path.read_text().partition("\n")[0]])


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(REPO)))
def test_a_module_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    long = [
        f"{path.name}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert long == []


def test_the_project_is_looked_at() -> None:
    names = {path.name for path in modules()}
    assert {"plugin.py", "cli.py", "lablib.py", "test_shape.py"} <= names
