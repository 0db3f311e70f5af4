"""Backup and restore with real daemons: what comes back, what is refused, and that no data is put at risk."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from live.daemons import Daemon
from waiting import wait_until

from pathctl import backup, config, shapes
from pathctl.errors import ErrorCode, PathctlError

SIZE = 4 << 20


@pytest.fixture
def alone(tmp_path):
    """One host with a volume, and its backup, ended."""
    alpha = Daemon(tmp_path, "alpha").start()
    alpha.call("host.init", name="alpha", address="127.0.0.1", port=alpha.port)
    alpha.call("volume.create", name="va", size=SIZE)
    make(alpha, tmp_path / "file")
    alpha.stop_all()
    yield alpha, tmp_path / "file"
    alpha.stop_all()


def make(host, path):
    return host.call("backup.make", path=str(path))


def restore(host, path, dry_run=False):
    return backup.restore(config.at(host.root), Path(path), dry_run)


def refused(host, path):
    """Both ways, with nothing changed."""
    before = everything(host)
    for dry_run in (True, False):
        with pytest.raises(PathctlError) as caught:
            restore(host, path, dry_run)
        assert "\n" not in caught.value.message
        assert everything(host) == before
    return caught.value


def everything(host):
    """All files of the host but the volumes' logs."""
    return {
        str(path.relative_to(host.root)): path.read_bytes()
        for path in sorted(host.root.rglob("*"))
        if path.is_file() and "/log/" not in str(path) and not path.name.endswith((".pid", "-shm", "-wal"))
    }


def create(alpha):
    return alpha.call(
        "pair.create", source="va", destination="beta:vb", invalidate="destination", create=True, size=SIZE
    )


def shown(host):
    (pair,) = host.call("pair.list")["pairs"]
    return pair


def wait_synchronized(host):
    wait_until(lambda: shown(host)["state"] == "Synchronized", "synchronized")


def test_a_backup_is_for_root_only_complete_and_never_over_a_file_that_is_there(hosts, tmp_path):
    alpha, _ = hosts
    create(alpha)
    path = tmp_path / "file"
    answer = make(alpha, path)
    assert (answer["file"], path.stat().st_mode & 0o777) == (str(path), 0o600)
    assert answer["contains"][-1].startswith("not the data of the volumes and not their track tables")
    with tarfile.open(path) as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("manifest.json"))
        for name, member in manifest["files"].items():
            raw = tar.extractfile(name).read()
            assert (len(raw), hashlib.sha256(raw).hexdigest()) == (member["size"], member["sha256"])
    assert {"pathctl.db", "pathctl.toml", "keys/host.key", "keys/host.crt"} < set(names)
    assert (len(names), manifest["host"], manifest["format"]) == (6, "alpha", 1)
    before = path.read_bytes()
    for target, code in ((path, "refused"), (tmp_path, "refused"), (tmp_path / "no/file", "not_found"), ("x", "usage")):
        with pytest.raises(PathctlError) as caught:
            make(alpha, target)
        assert caught.value.code == code
    failures = [e["message"] for e in alpha.call("events.list")["events"] if e["kind"] == "command.failed"]
    assert [message.partition(" failed: ")[0] for message in failures] == ["`pathctl backup`"] * 4
    assert (path.read_bytes(), list(tmp_path.glob(".*"))) == (before, [])


def test_a_configuration_comes_back_on_a_new_machine_and_its_pair_goes_on(hosts, tmp_path):
    """The system disk is lost, the volumes' folder was on another one."""
    alpha, beta = hosts
    create(alpha)
    wait_synchronized(alpha)
    make(alpha, tmp_path / "file")
    alpha.call("attach", volume="va")
    alpha.stop_all()
    volumes = alpha.root / "var/lib/pathctl/volumes"
    kept = {path.name: path.read_bytes() for path in volumes.iterdir()}
    subprocess.run(["rm", "-rf", alpha.root], check=True)
    alpha.root.mkdir()
    volumes.mkdir(parents=True)
    for name, raw in kept.items():
        (volumes / name).write_bytes(raw)
    plan = restore(alpha, tmp_path / "file", dry_run=True)
    assert isinstance(plan, shapes.Plan)
    assert (plan.loses, not (alpha.root / "var/lib/pathctl/pathctl.db").exists()) == ([], True)
    answer = restore(alpha, tmp_path / "file")
    assert any("its backing and track table fit, it is in pair" in text for text in answer.contains)
    alpha.start()
    wait_synchronized(alpha)
    assert not alpha.volume("va")["attached"]
    kinds = [event["kind"] for event in alpha.call("events.list")["events"]]
    assert "config.restored" in kinds
    alpha.call("pair.delete", pair="va")
    assert beta.rows() == [{"volume": "vb"}]


@pytest.mark.parametrize("restored", ["alpha", "beta"])
def test_an_older_configuration_is_no_danger_to_a_younger_pair(hosts, tmp_path, restored):
    alpha, beta = hosts
    host, other, name = (alpha, beta, "va") if restored == "alpha" else (beta, alpha, "vb")
    old = create(alpha)["pair"]["pair"]
    wait_synchronized(alpha)
    make(host, tmp_path / "file")
    alpha.call("pair.delete", pair="va")
    new = create(alpha)["pair"]["pair"]
    wait_synchronized(alpha)
    host.stop_all()
    plan = restore(host, tmp_path / "file", dry_run=True)
    assert any(f"pair {new} of volume {name}" in text for text in plan.loses)
    answer = restore(host, tmp_path / "file")
    told = next(text for text in answer.contains if text.startswith(f"volume {name}:"))
    assert all(words in told for words in (f"its pair {old} has ended", new, f"`pathctl pair delete {name} --half`"))
    host.start()
    wait_until(lambda: shown(host)["reason"], "it says what is wrong")
    assert (shown(host)["pair"], shown(host)["state"] in ("Partitioned", "Refused")) == (old, True)
    wait_until(lambda: shown(other)["state"] != "Synchronized", "the other one sees that the path is gone")
    images = alpha.image("va").read_bytes(), beta.image("vb").read_bytes()
    for one, volume in ((host, name), (other, "vb" if name == "va" else "va")):
        one.call("pair.delete", pair=volume, half=True)
        assert one.volume(volume)["pair"] is None
        assert not one.volume(volume)["incomplete"]
    assert (alpha.image("va").read_bytes(), beta.image("vb").read_bytes()) == images
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])
    create(alpha)
    wait_synchronized(alpha)


@pytest.mark.parametrize("restored", ["alpha", "beta"])
def test_a_volume_that_was_paired_after_the_backup_is_not_used_until_it_is_freed(hosts, tmp_path, restored):
    alpha, beta = hosts
    host, name = (alpha, "va") if restored == "alpha" else (beta, "vb")
    alpha.call("volume.create", name="va", size=SIZE)
    beta.call("volume.create", name="vb", size=SIZE)
    make(host, tmp_path / "file")
    pair = create(alpha)["pair"]["pair"]
    wait_synchronized(alpha)
    host.stop_all()
    answer = restore(host, tmp_path / "file")
    assert any(f"it is in pair {pair}, which is younger" in text for text in answer.contains)
    host.start()
    for verb, fields in (("attach", {"volume": name}), ("volume.accept", {"name": name})):
        with pytest.raises(PathctlError, match=f"pathctl pair delete {name} --half") as caught:
            host.call(verb, **fields)
        assert caught.value.code == ErrorCode.REFUSED
    assert f"`pathctl pair delete {name} --half`" in host.volume(name)["failed"]
    assert host.call("pair.delete", pair=name, half=True, dry_run=True)["plan"]["steps"]
    assert host.call("pair.delete", pair=name, half=True)["pair"]["pair"] == pair
    assert host.volume(name)["failed"] is None
    host.call("attach", volume=name)
    host.call("detach", volume=name)


def test_what_was_replaced_is_kept(alone):
    alpha, path = alone
    settings = alpha.root / "etc/pathctl/pathctl.toml"
    settings.write_text("[timeouts]\nretry_s = 9.0\n")
    alpha.start()
    alpha.call("volume.create", name="later", size=SIZE)
    alpha.stop_all()
    plan = restore(alpha, path, dry_run=True)
    assert plan.loses == ["volume later is not in the backup: its files stay, but are not known any more"]
    answer = restore(alpha, path)
    (kept,) = (alpha.root / "var/lib/pathctl").glob("before-restore-*")
    assert any(str(kept) in text for text in answer.contains)
    assert (kept / "pathctl.toml").read_text() == "[timeouts]\nretry_s = 9.0\n"
    with contextlib.closing(sqlite3.connect(kept / "pathctl.db")) as table:
        assert table.execute("SELECT name FROM volumes ORDER BY name").fetchall() == [("later",), ("va",)]
    assert "9.0" not in settings.read_text()
    alpha.start()
    assert [row["volume"] for row in alpha.rows()] == ["va"]
    assert alpha.image("later").exists()
    assert stat_modes(alpha) == {0o600}


def stat_modes(host):
    cfg = config.at(host.root)
    return {path.stat().st_mode & 0o777 for path in (cfg.database, cfg.host_key, cfg.host_certificate)}


def test_a_restore_is_refused_while_pathctld_or_a_volume_runs(hosts, tmp_path):
    alpha, _ = hosts
    create(alpha)
    make(alpha, tmp_path / "file")
    stop = f"with `pathctld --root {alpha.root} --stop-all`"
    with pytest.raises(PathctlError, match=f"a pathctld is running; .*{stop}") as caught:
        restore(alpha, tmp_path / "file")
    assert caught.value.code == ErrorCode.REFUSED
    assert stop in restore(alpha, tmp_path / "file", dry_run=True).steps[0]
    alpha.terminate()
    with pytest.raises(PathctlError, match=f"volume va still has a process.*{stop}"):
        restore(alpha, tmp_path / "file")
    alpha.start()
    wait_synchronized(alpha)


def members(path):
    with tarfile.open(path) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}


def write(path, parts):
    """A backup of these parts whose manifest is right."""
    manifest = json.loads(parts["manifest.json"])
    files = {name: raw for name, raw in parts.items() if name != "manifest.json"}
    manifest["files"] = {
        name: {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} for name, raw in files.items()
    }
    pack(path, {"manifest.json": json.dumps(manifest).encode(), **files})


def pack(path, parts):
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))


def spoil_bytes(path, parts):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


def spoil_member(path, parts):
    pack(path, parts | {"keys/host.key": parts["keys/host.key"][:-20] + b"x" * 20})


def longer_member(path, parts):
    pack(path, parts | {"keys/host.key": parts["keys/host.key"] + b"\n"})


def cut(path, parts):
    path.write_bytes(path.read_bytes()[:-200])


def newer(path, parts):
    manifest = json.loads(parts["manifest.json"])
    pack(path, parts | {"manifest.json": json.dumps({"format": 2, "shape": "another", "was": manifest}).encode()})


def newer_schema(path, parts):
    write(path, parts | {"pathctl.db": changed(path, parts, "PRAGMA user_version = 99")})


def wrong_name(path, parts):
    write(path, parts | {"pathctl.db": changed(path, parts, "UPDATE volumes SET name = '../../escaped'")})


def other_host(path, parts):
    write(path, parts | {"pathctl.db": changed(path, parts, "UPDATE host SET name = 'beta'")})


def changed(path, parts, command):
    file = path.with_name("changed.db")
    file.write_bytes(parts["pathctl.db"])
    with contextlib.closing(sqlite3.connect(file)) as table, table:
        for name in [row[0] for row in table.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]:
            table.execute(f"DROP TRIGGER {name}")
        table.execute(command)
    return file.read_bytes()


def damaged_database(path, parts):
    raw = bytearray(parts["pathctl.db"])
    raw[4096:8192] = os.urandom(4096)
    write(path, parts | {"pathctl.db": bytes(raw)})


def wrong_settings(path, parts):
    write(path, parts | {"pathctl.toml": b"[timeouts]\nno_such_key = 1\n"})


def other_key(path, parts):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    fresh = ec.generate_private_key(ec.SECP256R1())
    pem = fresh.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write(path, parts | {"keys/host.key": pem})


def traversal(name):
    def spoil(path, parts):
        write(path, parts | {name: b"x"})

    return spoil


def link(kind):
    def spoil(path, parts):
        with tarfile.open(path, "w:gz") as tar:
            for name, raw in parts.items():
                member = tarfile.TarInfo(name)
                member.size = len(raw)
                if name == "keys/host.key":
                    member.type, member.linkname, member.size = kind, "/etc/passwd", 0
                tar.addfile(member, io.BytesIO(raw) if member.size else None)

    return spoil


def twice(path, parts):
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in [*parts.items(), ("keys/host.key", parts["keys/host.key"])]:
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))


def without(missing):
    def spoil(path, parts):
        write(path, {name: raw for name, raw in parts.items() if name != missing})

    return spoil


def no_manifest(path, parts):
    pack(path, {name: raw for name, raw in parts.items() if name != "manifest.json"})


def bomb(path, parts):
    with gzip.open(path, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, raw in (parts | {"keys/host.key": bytes(32 << 20)}).items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))


SPOILED = {
    "a byte changed": (spoil_bytes, ""),
    "a member changed": (spoil_member, "keys/host.key is damaged"),
    "a member longer than told": (longer_member, "keys/host.key is damaged"),
    "cut off": (cut, "damaged"),
    "of a newer format": (newer, "newer pathctl (format 2, this one reads up to 1)"),
    "of a newer schema": (newer_schema, "schema 99"),
    "a volume called like a path": (wrong_name, "is no name for a volume"),
    "two names": (other_host, "its manifest says host alpha, its database beta"),
    "a damaged database": (damaged_database, "its database is damaged"),
    "settings that cannot be used": (wrong_settings, "no_such_key"),
    "a key that does not fit": (other_key, "do not fit each other"),
    "a path upwards": (traversal("../../escaped"), "does not belong into a backup"),
    "an absolute path": (traversal("/tmp/escaped"), "does not belong into a backup"),
    "a file of another kind": (traversal("keys/psk/escaped"), "does not belong into a backup"),
    "a symbolic link": (link(tarfile.SYMTYPE), "does not belong into a backup"),
    "a hard link": (link(tarfile.LNKTYPE), "does not belong into a backup"),
    "a device": (link(tarfile.CHRTYPE), "does not belong into a backup"),
    "a member twice": (twice, "does not belong into a backup"),
    "no database": (without("pathctl.db"), "pathctl.db is missing"),
    "no key": (without("keys/host.key"), "keys/host.key is missing"),
    "no manifest": (no_manifest, "no backup of pathctl"),
    "far too large": (bomb, "damaged"),
    "some text": (lambda path, parts: path.write_text("hello"), "no backup of pathctl or is damaged"),
    "empty": (lambda path, parts: path.write_bytes(b""), "no backup of pathctl or is damaged"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_not_a_whole_backup_of_this_host_is_refused_with_nothing_changed(alone, name):
    alpha, path = alone
    spoil, words = SPOILED[name]
    spoil(path, members(path))
    error = refused(alpha, path)
    assert (error.code, words in error.message, "nothing was changed" in error.message) == (
        ErrorCode.REFUSED,
        True,
        True,
    ), error.message
    assert not list(alpha.root.rglob("*escaped*"))


def test_a_backup_of_another_host_or_none_is_refused(alone, tmp_path):
    alpha, _ = alone
    beta = Daemon(tmp_path, "beta").start()
    try:
        beta.call("host.init", name="alpha", address="127.0.0.1", port=beta.port)
        make(beta, tmp_path / "other")
    finally:
        beta.stop_all()
    assert "it is of host alpha, and the certificate here" in refused(alpha, tmp_path / "other").message
    assert refused(alpha, tmp_path / "none").code == ErrorCode.NOT_FOUND
    assert refused(alpha, tmp_path).code == ErrorCode.REFUSED


def test_what_does_not_fit_a_volume_is_told(alone):
    alpha, path = alone
    image, meta = alpha.image("va"), alpha.image("va").with_suffix(".meta")
    raw = meta.read_bytes()
    cases = [
        (lambda: None, "its backing and track table fit"),
        (lambda: meta.write_bytes(bytes(len(raw))), "track table"),
        (meta.unlink, "track table"),
        (lambda: os.truncate(image, 4096), "has 4096 bytes, less than"),
        (image.unlink, "cannot be opened (No such file or directory)"),
    ]
    for change, words in cases:
        change()
        (told,) = [text for text in restore(alpha, path).contains if text.startswith("volume va:")]
        assert words in told
        assert ("pathctl volume delete va" in told) == (words != "its backing and track table fit")
    alpha.start()
    alpha.call("volume.delete", name="va")
    assert alpha.rows() == []


@pytest.mark.parametrize("moves", range(1, 9))
def test_a_restore_cut_off_anywhere_is_carried_on_by_pathctld(alone, moves):
    """All or nothing: the process is killed after so many moves of files."""
    alpha, path = alone
    alpha.start()
    alpha.call("volume.create", name="later", size=SIZE)
    alpha.stop_all()
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pathctl import backup, config\n"
        "left, real = [int(sys.argv[3])], backup._move\n"
        "def move(source, target):\n"
        "    real(source, target)\n"
        "    left[0] -= 1\n"
        "    if not left[0]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "backup._move = move\n"
        "backup.restore(config.at(sys.argv[1]), Path(sys.argv[2]), False)\n"
    )
    command = [sys.executable, "-c", program, str(alpha.root), str(path), str(moves)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode in (-signal.SIGKILL, 0), found.stderr
    alpha.start()
    assert alpha.rows() == [{"volume": "va"}]
    state = alpha.root / "var/lib/pathctl"
    assert not (state / "restoring").exists()
    assert len(list(state.glob("before-restore-*"))) == 1
    assert "config.restored" in [event["kind"] for event in alpha.call("events.list")["events"]]


def test_a_restore_killed_before_it_was_decided_changes_nothing(alone):
    alpha, path = alone
    before = everything(alpha)
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pathctl import backup, config\n"
        "backup._commit = lambda *values: os.kill(os.getpid(), signal.SIGKILL)\n"
        "backup.restore(config.at(sys.argv[1]), Path(sys.argv[2]), False)\n"
    )
    found = subprocess.run([sys.executable, "-c", program, str(alpha.root), str(path)], timeout=60)
    assert found.returncode == -signal.SIGKILL
    after = {name: raw for name, raw in everything(alpha).items() if "restoring.new" not in name}
    assert after == before
    restore(alpha, path)
    assert not list(alpha.root.rglob("restoring*"))
