"""format - `python -m nbdplugin.format create|show|accept|release`: a volume's metadata file without its process.

create makes the file of a new volume, everything valid, nothing owed.  show prints it as the control socket's
status would, as far as a file can tell.  accept declares what lies in an unpaired volume to be its data, of a lineage
of its own.  release drops a pair that has ended while the volume had no process; what is invalid stays so.  Both are
one change of the header, so that a crash leaves the old state or the new one, and may be repeated.  Exit 1 and one
sentence on stderr where that fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path

from nbdplugin import geometry, metafile, status
from nbdplugin.errors import PathError, Refused
from nbdplugin.metafile import MetaFile
from nbdplugin.tracks import Header


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbdplugin.format", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create")
    create.add_argument("--uuid", type=uuid.UUID, required=True)
    create.add_argument("--size", type=int, required=True, help="bytes")
    create.add_argument("--track-size", type=int, required=True, help="bytes")
    release = verbs.add_parser("release")
    release.add_argument("--pair", required=True)
    for verb in (create, release, verbs.add_parser("show"), verbs.add_parser("accept")):
        verb.add_argument("--meta", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    try:
        match options.verb:
            case "create":
                geometry.check(options.size, options.track_size)
                header = Header(str(options.uuid), options.size, options.track_size, generation=str(uuid.uuid4()))
                metafile.create(options.meta, header)
            case "accept":
                accept(_open(options.meta))
            case "release":
                release(_open(options.meta), options.pair)
            case _:
                print(json.dumps(status.describe(_open(options.meta, is_writer=False).table)))
    except PathError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _open(path: Path, is_writer: bool = True) -> MetaFile:
    meta = MetaFile(path, is_writer)
    for what in meta.bad:
        print(f"{what} is bad; its twin is good{' and replaced it' if is_writer else ''}", file=sys.stderr)
    return meta


def accept(meta: MetaFile) -> None:
    """Nothing is invalid or incomplete any more; changes nothing where nothing was."""
    table, header = meta.table, meta.table.header
    if header.pair is not None:
        raise Refused(f"the volume belongs to pair {header.pair}; delete that pair first")
    if not header.incomplete and not table.invalid.count:
        return
    header.incomplete = False
    header.generation, header.ancestors = str(uuid.uuid4()), []  # a mixture of states descends from none of them
    meta.write(table.build_fill(invalid=False, owed=False))


def release(meta: MetaFile, pair: str) -> None:
    """As the command `disconnect` of a process; changes nothing if the volume is not in that pair."""
    if meta.table.header.pair == pair:
        meta.table.header.leave_pair()
        meta.write(meta.table.build_fill(invalid=None, owed=False))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
