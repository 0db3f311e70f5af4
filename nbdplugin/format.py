"""format - `python -m nbdplugin.format create|show`: a volume's metadata file without its process.

create makes the file of a new volume, everything valid, nothing owed.  show prints it as the control socket's
status would, as far as a file can tell.  Exit 1 and one sentence on stderr where that fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path

from nbdplugin import geometry, metafile, status
from nbdplugin.errors import PathError
from nbdplugin.tracks import Header


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbdplugin.format", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create")
    create.add_argument("--uuid", type=uuid.UUID, required=True)
    create.add_argument("--size", type=int, required=True, help="bytes")
    create.add_argument("--track-size", type=int, required=True, help="bytes")
    for verb in (create, verbs.add_parser("show")):
        verb.add_argument("--meta", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    try:
        if options.verb == "create":
            geometry.check(options.size, options.track_size)
            header = Header(str(options.uuid), options.size, options.track_size, generation=str(uuid.uuid4()))
            metafile.create(options.meta, header)
        else:
            print(json.dumps(status.describe(metafile.MetaFile(options.meta, is_writer=False).table)))
    except PathError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
