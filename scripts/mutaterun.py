"""mutaterun - switches off the behaviour behind each statement, one line at a time, and looks whether its test fails.

    scripts/mutate [NUMBER...]     all statements, or these

Works in a copy of the tree, first unchanged: there every test has to pass.  Then, for each mutation, one line is
replaced and the tests of its statements run: every one of them has to fail.  Exit code 1 if one does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
COPIED = ("nbdplugin", "pathctl", "tests", "scripts", "pyproject.toml")
RUN_LIMIT_S = 900


@dataclasses.dataclass(frozen=True, slots=True)
class Mutation:
    """`old`, a line of `file` that stands there once, becomes `new`; the tests of `statements` must notice."""

    what: str
    statements: tuple[int, ...]
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "the source is ready from its connection on",
        (1, 13, 25, 34),
        "nbdplugin/modes.py",
        "header.invalidate, header.committed, header.ready = invalidate, False, False",
        "header.invalidate, header.committed, header.ready = invalidate, False, True",
    ),
    Mutation(
        "the two connections are made in the wrong order",
        (1, 13, 25, 34),
        "pathctl/paircreate.py",
        '"first": connect[spec.first],',
        '"first": connect[spec.second],',
    ),
    Mutation(
        "a missing source volume is not created",
        (2, 14, 26, 35),
        "pathctl/paircreate.py",
        'made = ["create_source"] * spec.create_source',
        "made: list[str] = []",
    ),
    Mutation(
        "a missing destination volume is not created",
        (2, 14, 26, 35),
        "pathctl/paircreate.py",
        'made += ["create_destination"] * spec.create_destination',
        "made += []",
    ),
    Mutation(
        "the source connection is not entered in its host's table",
        (3, 15, 27, 36),
        "pathctl/pairsteps.py",
        'row = _new_row(body, peer, "source", None)',
        "return",
    ),
    Mutation(
        "the destination connection is not entered in its host's table",
        (4, 16, 28, 37),
        "pathctl/pairsteps.py",
        'row = _new_row(body, peer, "destination", port=_free_port(node))',
        'return {"port": _free_port(node)}',
    ),
    Mutation(
        "the first connection stays after the second has failed",
        (5, 17, 29, 38),
        "pathctl/paircreate.py",
        "sides: tuple[db.Side, db.Side] = (spec.second, spec.first)",
        "sides: tuple[db.Side, ...] = (spec.second,)",
    ),
    Mutation(
        "the error of the second connection is not returned",
        (6, 18, 30, 39),
        "pathctl/stepper.py",
        "await self._fail(error)",
        "return",
    ),
    Mutation(
        "the destination's tracks are not marked",
        (7, 19),
        "nbdplugin/modes.py",
        "return core.table.build_fill(invalid=is_source, owed=not is_source)",
        "return core.table.build_fill(invalid=is_source, owed=False)",
    ),
    Mutation(
        "nothing is pushed in the background",
        (8, 20),
        "nbdplugin/transfer.py",
        "push = core.table.owed.find_run(cursor, most)",
        "push = None",
    ),
    Mutation(
        "the source's tracks are not marked",
        (9, 21, 31),
        "nbdplugin/modes.py",
        "return core.table.build_fill(invalid=is_source, owed=not is_source)",
        "return core.table.build_fill(invalid=False, owed=not is_source)",
    ),
    Mutation(
        "nothing is pulled in the background",
        (10, 22, 32),
        "nbdplugin/transfer.py",
        "pull = core.table.invalid.find_run(cursor, most)",
        "pull = None",
    ),
    Mutation(
        "a read of an invalid track does not fetch it",
        (11, 23),
        "nbdplugin/volume.py",
        "is_plain = not core.is_quiesced and not core.table.invalid.is_any(span.first, span.count)",
        "is_plain = not core.is_quiesced",
    ),
    Mutation(
        "a write to part of an invalid track does not fetch it",
        (12, 24, 33),
        "nbdplugin/requests.py",
        "return tuple(t for t in core.table.geometry.get_edges(offset, length) if core.table.invalid.get(t))",
        "return ()",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/mutate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("number", nargs="*", type=int, help="statements to look at (default: all)")
    wanted = set(parser.parse_args().number) or set(range(1, 40))
    missed = 0
    with tempfile.TemporaryDirectory(prefix="pathctl-mutate-", dir="/var/tmp") as folder:
        tree = copy_tree(Path(folder))
        results = run_tests(tree, sorted(wanted))
        failed = sorted(number for number, passed in results.items() if not passed)
        if failed or set(results) != wanted:
            print(f"mutate: without any mutation, these do not pass: {failed or sorted(wanted - set(results))}")
            return 1
        print(f"{len(results)} statements pass unchanged\n\n{'CAUGHT':8}{'STATEMENTS':18}MUTATION", flush=True)
        for mutation in MUTATIONS:
            numbers = sorted(wanted & set(mutation.statements))
            if numbers:
                missed += len(report(mutation, numbers, try_mutation(tree, mutation, numbers)))
    print(f"\n{'every mutation is caught' if not missed else f'{missed} statements did not notice'}")
    return 1 if missed else 0


def copy_tree(folder: Path) -> Path:
    """The project without its history, using the original's virtual environment."""
    for name in COPIED:
        source = REPO / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    (folder / ".venv").symlink_to(REPO / ".venv")
    return folder


def apply(text: str, mutation: Mutation) -> str:
    """The text with the mutation's line replaced; ValueError unless it stands there exactly once."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file}: {mutation.old!r} stands there {text.count(mutation.old)} times, not once")
    return text.replace(mutation.old, mutation.new)


def try_mutation(tree: Path, mutation: Mutation, numbers: list[int]) -> dict[int, bool]:
    file = tree / mutation.file
    original = file.read_text()
    file.write_text(apply(original, mutation))
    try:
        return run_tests(tree, numbers)
    finally:
        file.write_text(original)


def run_tests(tree: Path, numbers: list[int]) -> dict[int, bool]:
    """Whether each statement's test passes; the copy's packages come first on the path."""
    report_file = tree / "report.xml"
    report_file.unlink(missing_ok=True)
    chosen = " or ".join(f"statement-{number:02d}" for number in numbers)
    command: list[str | Path] = [
        tree / ".venv/bin/python",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "--timeout=90",
    ]
    subprocess.run(
        [*command, f"--junit-xml={report_file}", "tests/hosts/test_statements.py", "-k", chosen],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    results: dict[int, bool] = {}
    for case in ElementTree.parse(report_file).iter("testcase"):
        number = int(case.get("name", "").rpartition("statement-")[2].rstrip("]"))
        passed = case.find("failure") is None and case.find("error") is None
        results[number] = results.get(number, True) and passed
    return results


def report(mutation: Mutation, numbers: list[int], results: dict[int, bool]) -> list[int]:
    """One line of the table; -> the statements that did not notice."""
    missed = [number for number in numbers if results.get(number, True)]
    word = "NO" if missed else "yes"
    print(f"{word:8}{','.join(map(str, numbers)):18}{mutation.what}  ({mutation.file})", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
