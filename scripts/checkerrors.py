"""checkerrors - the whole list of bad input, typed at real daemons; scripts/check-errors runs it.

The cases, and what is expected of each, are those of tests/live/badinput.py.  Exit code 1 if one is not as expected.
"""

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

from live import badcase, badinput
from live.badcase import Case
from live.badscene import Scene


def main() -> int:
    wanted = " ".join(sys.argv[1:])
    cases = [case for case in badinput.CASES if wanted in f"{case.line}: {case.title}"]
    if not cases:
        print(f"check-errors: no line or command contains {wanted!r}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="pathctl-errors.", dir="/tmp"))
    scene = Scene(folder)
    try:
        scene.set_up()
        wrong = [case for case in cases if not show(scene, case)]
    finally:
        scene.tear_down()
        shutil.rmtree(folder)
    print(f"\n{len(cases)} cases, {len(wrong)} not as expected")
    return 1 if wrong else 0


def show(scene: Scene, case: Case) -> bool:
    """Print one case for reading; -> whether it is as expected."""
    result = case.run(scene)
    faults = badcase.faults_of(case, result)
    typed = shlex.join(result.outcome.argv[3:]).encode("unicode_escape").decode()  # after the program and its root
    print(f"\n{case.line}\n  {case.at}$ {case.program} {typed}{case.odd}\n  exit code {result.outcome.code}")
    for line in (result.outcome.err or result.outcome.out or "(silence)").rstrip("\n").splitlines()[:12]:
        print(f"  | {line.encode('unicode_escape').decode()}")
    for fault in faults:
        print(f"  NOT AS EXPECTED: {fault}")
    sys.stdout.flush()
    return not faults


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head` has seen enough
        os._exit(1)
