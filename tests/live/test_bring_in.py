"""A disk that is already in use as a plain disk: brought in with its content, kept from two masters, given back."""

import contextlib
import os
import subprocess

import pytest
from live.daemons import BIN, Daemon
from waiting import wait_until

from pathctl.errors import ErrorCode, ExitCode, PathctlError

SIZE = 24 << 20


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture
def alpha(tmp_path):
    host = Daemon(tmp_path, "alpha").start()
    yield host
    host.stop_all()


@pytest.fixture
def image(tmp_path):
    """A file that is in use as a plain disk: ext4 with some files."""
    path = tmp_path / "plain.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    run("mkfs.ext4", "-q", path)
    with mounted(path, tmp_path) as folder:
        for number in range(20):
            (folder / f"file{number}").write_bytes(os.urandom(40_000))
        (folder / "deep/er").mkdir(parents=True)
        (folder / "deep/er/name with spaces").write_text("content")
    return path


@contextlib.contextmanager
def loop_over(path):
    device = run("losetup", "--find", "--show", path)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(source, tmp_path):
    folder = tmp_path / f"mnt{len(list(tmp_path.glob('mnt*')))}"
    folder.mkdir()
    run("mount", *([] if str(source).startswith("/dev/") else ["-o", "loop"]), source, folder)
    try:
        yield folder
    finally:
        run("umount", folder)
        if not str(source).startswith("/dev/"):
            wait_until(lambda: not run("losetup", "--associated", source), "its loop device has gone")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(host, verb="volume.create", **fields):
    with pytest.raises(PathctlError) as caught:
        host.call(verb, **fields)
    return caught.value


@pytest.mark.parametrize("kind", ["file", "device"])
def test_a_plain_disk_is_brought_in_paired_copied_and_given_back_with_its_content(hosts, image, tmp_path, kind):
    alpha, beta = hosts
    with contextlib.ExitStack() as ends:
        backing = ends.enter_context(loop_over(image)) if kind == "device" else str(image)
        with mounted(backing, tmp_path) as folder:
            before = files(folder)
        bytes_before = image.read_bytes()
        assert alpha.call("volume.create", name="home", backing=backing)["volume"]["size"] == SIZE
        assert image.read_bytes() == bytes_before
        created = alpha.call(
            "pair.create", source="home", destination="beta:home", invalidate="destination", create=True, attach=True
        )
        with mounted(created["device"], tmp_path) as folder:
            assert files(folder) == before
            (folder / "new").write_bytes(os.urandom(100_000))
            after = files(folder)
        wait_until(lambda: alpha.call("pair.show", pair="home")["pair"]["state"] == "Synchronized", "synchronized")
        alpha.call("detach", volume="home")
        alpha.call("pair.delete", pair="home")
        assert image.read_bytes() == beta.image("home").read_bytes()
        assert alpha.call("volume.delete", name="home", dry_run=True)["plan"]["loses"] == []
        bytes_before = image.read_bytes()
        alpha.call("volume.delete", name="home")
        assert image.read_bytes() == bytes_before
        assert alpha.rows() == []
        for plain in (backing, str(beta.image("home"))):
            run("e2fsck", "-f", "-n", plain)
            with mounted(plain, tmp_path) as folder:
                assert files(folder) == after


def test_a_backing_that_is_mounted_or_under_a_loop_device_is_refused_and_the_use_is_named(alpha, image, tmp_path):
    with loop_over(image) as device:
        error = refused(alpha, name="home", backing=str(image))
        assert (error.code, f"{device} is a loop device over it" in error.message) == (ErrorCode.REFUSED, True)
        with mounted(device, tmp_path) as folder:
            for backing in (device, str(image)):
                error = refused(alpha, name="home", backing=backing)
                assert f"mounted at {folder}" in error.message
    assert alpha.rows() == []
    assert alpha.call("volume.create", name="home", backing=str(image))["volume"]["size"] == SIZE


@pytest.mark.parametrize("kind", ["file", "device"])
def test_a_backing_that_a_process_writes_to_is_refused_and_the_process_is_named(alpha, image, kind):
    with contextlib.ExitStack() as ends:
        backing = ends.enter_context(loop_over(image)) if kind == "device" else str(image)
        with open(backing, "r+b"):
            error = refused(alpha, name="home", backing=backing)
            assert f"(pid {os.getpid()}) has it open for writing" in error.message
        with open(backing, "rb"):
            alpha.call("volume.create", name="home", backing=backing, dry_run=True)
        alpha.call("volume.create", name="home", backing=backing)
        alpha.call("volume.delete", name="home")


def test_a_backing_taken_meanwhile_keeps_the_volume_from_being_attached(alpha, image, tmp_path):
    alpha.call("volume.create", name="home", backing=str(image))
    with mounted(image, tmp_path) as folder:
        error = refused(alpha, "attach", volume="home")
        assert (error.code, f"mounted at {folder}" in error.message) == (ErrorCode.REFUSED, True)
        assert not alpha.volume("home")["attached"]
    device = alpha.call("attach", volume="home")["device"]
    with mounted(device, tmp_path) as folder:
        assert (folder / "file0").exists()


def test_two_volumes_do_not_share_bytes(alpha, image, tmp_path):
    alpha.call("volume.create", name="home", backing=str(image))
    link = tmp_path / "link"
    link.symlink_to(image)
    hard = tmp_path / "hard"
    hard.hardlink_to(image)
    with loop_over(image) as device:
        for backing in (str(link), str(hard), device):
            error = refused(alpha, name="other", backing=backing)
            assert error.code == ErrorCode.REFUSED
            assert "already backs volume home" in error.message or "is a loop device over it" in error.message


def test_what_cannot_back_a_volume_is_refused_with_what_to_do(alpha, tmp_path):
    odd, empty, small = tmp_path / "odd", tmp_path / "empty", tmp_path / "small"
    odd.write_bytes(bytes(100_001))
    empty.touch()
    small.write_bytes(bytes(4096))
    cases = [
        ({"backing": str(odd)}, ErrorCode.REFUSED, f"truncate --size 100352 {odd}"),
        ({"backing": str(odd)}, ErrorCode.REFUSED, "--size 99840"),
        ({"backing": str(empty)}, ErrorCode.REFUSED, "is empty"),
        ({"backing": str(small), "size": 8192}, ErrorCode.REFUSED, f"truncate --size 8192 {small}"),
        ({"backing": str(tmp_path)}, ErrorCode.USAGE, "is a folder"),
        ({"backing": str(tmp_path / "none")}, ErrorCode.NOT_FOUND, "does not exist"),
        ({"backing": str(small / "below")}, ErrorCode.NOT_FOUND, "does not exist"),
        ({"backing": "relative"}, ErrorCode.USAGE, "no absolute path"),
        ({"backing": "/a\0b"}, ErrorCode.USAGE, "is no path"),
        ({"backing": "/dev/null"}, ErrorCode.USAGE, "neither a file nor a block device"),
        ({"backing": str(alpha.root / "var/lib/pathctl/pathctl.db")}, ErrorCode.REFUSED, "belongs to pathctl itself"),
        ({"size": 1 << 60}, ErrorCode.REFUSED, "has no files of 1E"),
    ]
    for fields, code, words in cases:
        for dry_run in (True, False):
            error = refused(alpha, name="v", **fields, dry_run=dry_run)
            assert (error.code, words in error.message) == (code, True), error.message
    assert alpha.rows() == []
    assert sorted(alpha.image("v").parent.iterdir()) == []
    alpha.call("volume.create", name="v", backing=str(odd), size=99840)


def test_a_backing_that_is_read_only_is_refused(alpha, image, tmp_path):
    device = run("losetup", "--find", "--show", "--read-only", image)
    try:
        error = refused(alpha, name="home", backing=device)
        assert (error.code, "cannot be opened for writing" in error.message) == (ErrorCode.REFUSED, True)
    finally:
        run("losetup", "--detach", device)
    folder = tmp_path / "ro"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "none", folder)
    try:
        (folder / "image").write_bytes(bytes(4096))
        run("mount", "-o", "remount,ro", folder)
        error = refused(alpha, name="home", backing=str(folder / "image"))
        assert (error.code, "Read-only file system" in error.message) == (ErrorCode.REFUSED, True)
    finally:
        run("umount", folder)


def test_what_the_kernel_swaps_to_is_refused(alpha, tmp_path):
    path = tmp_path / "swap"
    path.write_bytes(bytes(4 << 20))
    path.chmod(0o600)
    run("mkswap", "-q", path)
    run("swapon", path)
    try:
        error = refused(alpha, name="home", backing=str(path))
        assert (error.code, "the kernel swaps to it" in error.message) == (ErrorCode.REFUSED, True)
    finally:
        run("swapoff", path)


def test_a_disk_and_its_partitions_are_told_apart(alpha, image, tmp_path):
    with loop_over(image) as disk:
        for number, first in ((1, 2048), (2, 22528)):
            run("addpart", disk, str(number), str(first), "20480")
        try:
            run("mkfs.ext4", "-q", f"{disk}p1")
            with mounted(f"{disk}p1", tmp_path) as folder:
                for backing in (disk, f"{disk}p1"):
                    assert f"mounted at {folder}" in refused(alpha, name="home", backing=backing).message
            alpha.call("volume.create", name="first", backing=f"{disk}p1")
            assert "already backs volume first" in refused(alpha, name="home", backing=disk).message
            alpha.call("volume.create", name="second", backing=f"{disk}p2")
            device = alpha.call("attach", volume="first")["device"]
            with mounted(device, tmp_path) as folder:
                (folder / "file").write_bytes(b"content")
            alpha.call("detach", volume="first")
            alpha.call("volume.delete", name="first")
            with mounted(f"{disk}p1", tmp_path) as folder:
                assert (folder / "file").read_bytes() == b"content"
        finally:
            for number in (1, 2):
                run("delpart", disk, str(number))


def test_a_backing_taken_while_the_host_was_down_is_waited_for_and_the_use_is_shown(hosts, image, tmp_path):
    alpha, _ = hosts
    alpha.call("volume.create", name="home", backing=str(image))
    wanted = {"source": "home", "destination": "beta:home", "invalidate": "destination", "create": True}
    alpha.call("pair.create", **wanted)
    alpha.stop_all()
    with mounted(image, tmp_path) as folder:
        alpha.start()
        wait_until(lambda: f"mounted at {folder}" in (alpha.volume("home")["failed"] or ""), "the use is shown")
        assert alpha.volume("home")["pid"] is None
    wait_until(lambda: alpha.call("pair.show", pair="home")["pair"]["state"] == "Synchronized", "it comes up by itself")
    assert alpha.volume("home")["failed"] is None


@pytest.mark.parametrize("side", ["source", "destination"])
def test_that_a_plain_disk_is_given_back_incomplete_is_not_forgotten_without_yes(hosts, image, side):
    alpha, beta = hosts
    alpha.call("volume.create", name="home", backing=str(image))
    beta.call("volume.create", name="vb", size=SIZE)
    host, pair = alpha, {"source": "home", "destination": "beta:vb"}
    if side == "destination":
        host, pair = beta, {"source": "vb", "destination": "alpha:home"}
    host.call("pair.create", **pair, invalidate=side, copy_rate_bytes_s=0)
    wait_until(lambda: alpha.volume("home")["incomplete"], "the volume knows that it lacks data")
    host.call("pair.delete", pair=pair["source"], force=True)
    (lost,) = alpha.call("volume.delete", name="home", dry_run=True)["plan"]["loses"]
    lacking = f"{SIZE >> 16} of {SIZE >> 16} tracks, 24M ({SIZE} bytes)," if side == "source" else "some tracks"
    assert lost == (
        f"that {image} is incomplete: {lacking} of volume home were only on another host, and as a plain disk "
        "nothing tells that any more"
    )
    refuse_without_yes(alpha, lost)
    alpha.call("volume.accept", name="home")
    assert alpha.call("volume.delete", name="home", dry_run=True)["plan"]["loses"] == []


def refuse_without_yes(host, lost):
    command = [BIN / "pathctl", "--root", host.root, "volume", "delete", "home"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    assert (ended.returncode, lost in ended.stderr) == (ExitCode.REFUSED, True), ended.stderr
    assert host.rows() == [{"volume": "home"}]


@pytest.mark.parametrize("kind", ["missing", "damaged"])
def test_that_nobody_knows_whether_a_plain_disk_is_complete_is_said_before_its_volume_is_deleted(alpha, image, kind):
    alpha.call("volume.create", name="home", backing=str(image))
    assert alpha.call("volume.delete", name="home", dry_run=True)["plan"]["loses"] == []
    meta = alpha.image("home").with_suffix(".meta")
    meta.unlink()
    if kind == "damaged":
        meta.write_bytes(os.urandom(8192))
    (lost,) = alpha.call("volume.delete", name="home", dry_run=True)["plan"]["loses"]
    assert lost.startswith(f"whether the data on {image} is complete is not known (")
    refuse_without_yes(alpha, lost)
    alpha.call("volume.delete", name="home")
    assert (alpha.rows(), image.stat().st_size) == ([], SIZE)


def test_what_an_attached_source_still_writes_back_is_named_before_it_is_invalidated(hosts, image, tmp_path):
    alpha, beta = hosts
    alpha.call("volume.create", name="home", backing=str(image))
    beta.call("volume.create", name="vb", size=SIZE)
    wanted = {"source": "home", "destination": "beta:vb", "invalidate": "source", "dry_run": True}
    assert len(alpha.call("pair.create", **wanted)["plan"]["loses"]) == 1
    device = alpha.call("attach", volume="home")["device"]
    with mounted(device, tmp_path) as folder:
        error = refused(alpha, "pair.create", **wanted)
        assert (error.code, "destroys the good copy" in error.message) == (ErrorCode.REFUSED, True)
        replaced, written = alpha.call("pair.create", **wanted, force=True)["plan"]["loses"]
        assert "of alpha:home are replaced" in replaced
        assert written == (
            f"{device} is attached and mounted at {folder}: what its page cache or file system still writes back of "
            "the old data destroys the good copy at beta:vb, too"
        )
    wanted["invalidate"] = "destination"
    assert len(alpha.call("pair.create", **wanted, force=True)["plan"]["loses"]) == 1
