"""A volume that has lost its backing or its track table: its pair is ended, it is forgotten, and all of it is told."""

import os
import shutil
import signal
import subprocess

import psutil
import pytest
from live.daemons import BIN, Daemon, enrol
from waiting import wait_until

from pathctl import backup, config
from pathctl.errors import ErrorCode, PathctlError

SIZE = 8 << 20


@pytest.fixture
def hosts(tmp_path):
    alpha, beta = Daemon(tmp_path, "alpha").start(), Daemon(tmp_path, "beta").start()
    try:
        enrol(alpha, beta)
        alpha.call("volume.create", name="va", size=SIZE)
        beta.call("volume.create", name="vb", size=SIZE)
        yield alpha, beta
    finally:
        alpha.stop_all()
        beta.stop_all()


def create(alpha, **fields):
    alpha.call("pair.create", source="va", destination="beta:vb", invalidate="destination", **fields)
    if not fields:
        wait_state(alpha, "Synchronized")


def wait_state(host, wanted):
    wait_until(lambda: [pair["state"] for pair in host.call("pair.list")["pairs"]] == [wanted], f"it is {wanted}")


def lose(host, name, kind):
    """The file has gone, and the process with it."""
    host.image(name).with_suffix(f".{kind}").unlink()
    end_process(host, name)


def end_process(host, name):
    os.kill(host.volume(name)["pid"], signal.SIGKILL)
    wait_until(lambda: "ended at its start" in (host.volume(name)["failed"] or ""), "the process does not start again")


def refused(host, verb, **fields):
    with pytest.raises(PathctlError) as caught:
        host.call(verb, **fields)
    return caught.value


SAID = {"img": "its backing {image} cannot be opened (No such file or directory)", "meta": "its track table {meta} is"}


def said(host, name, kind):
    image = host.image(name)
    return SAID[kind].format(image=image, meta=image.with_suffix(".meta"))


@pytest.mark.parametrize("kind", ["img", "meta"])
@pytest.mark.parametrize("side", ["source", "destination"])
def test_the_half_of_a_damaged_volume_is_freed_and_the_volume_forgotten(hosts, side, kind):
    alpha, beta = hosts
    create(alpha)
    host, name, there = (alpha, "va", "beta:vb") if side == "source" else (beta, "vb", "alpha:va")
    lose(host, name, kind)
    plan = host.call("pair.delete", pair=name, half=True, dry_run=True)["plan"]
    assert f"{host.name}:{name} cannot be used, because {said(host, name, kind)}" in plan["steps"][-1]
    assert there in plan["steps"][-1]
    assert [kind] * len(plan["loses"]) == (["meta"] if kind == "meta" else [])
    answer = host.call("pair.delete", pair=name, half=True)["pair"]
    assert answer["reason"] == plan["steps"][-1]
    assert host.rows() == [{"volume": name}]
    host.call("volume.delete", name=name)
    assert host.rows() == []
    assert list(host.image(name).parent.glob("v*")) == []


@pytest.mark.parametrize("kind", ["img", "meta"])
def test_deleting_the_pair_of_a_damaged_source_says_what_to_type_where_and_which_copy_is_left(hosts, kind):
    alpha, beta = hosts
    create(alpha)
    lose(alpha, "va", kind)
    for host, name in ((alpha, "va"), (beta, "vb")):
        for dry_run in (True, False):
            error = refused(host, "pair.delete", pair=name, dry_run=dry_run)
            assert error.code == ErrorCode.REFUSED
            assert f"alpha:va cannot be used, because {said(alpha, 'va', kind)}" in error.message
            assert "`pathctl pair delete va --half --yes` at alpha" in error.message
            assert "`pathctl pair delete vb --half --yes` at beta" in error.message
            copy = "the copy to go on with is beta:vb" if kind == "img" else "beta:vb has is not known"
            assert copy in error.message
    alpha.call("pair.delete", pair="va", half=True)
    beta.call("pair.delete", pair="vb", half=True)
    beta.call("attach", volume="vb")
    alpha.call("volume.delete", name="va")


@pytest.mark.parametrize("kind", ["img", "meta"])
def test_a_pair_with_a_damaged_destination_is_deleted_as_a_whole(hosts, kind):
    alpha, beta = hosts
    create(alpha)
    lose(beta, "vb", kind)
    wait_state(alpha, "Partitioned")
    alpha.call("pair.delete", pair="va", force=True)
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])
    beta.call("volume.delete", name="vb")
    assert alpha.volume("va")["incomplete"] is False


def test_a_damaged_volume_that_is_attached_is_freed_detached_and_deleted(hosts):
    alpha, _ = hosts
    create(alpha)
    device = alpha.call("attach", volume="va")["device"]
    lose(alpha, "va", "img")
    with open(device, "rb"):
        error = refused(alpha, "detach", volume="va")
        assert f"what waits for it, because {said(alpha, 'va', 'img')}, fails after `kill " in error.message
    answer = alpha.call("pair.delete", pair="va", half=True)["pair"]
    assert "`pathctl detach va`, then `pathctl volume delete va --yes`" in answer["reason"]
    alpha.call("detach", volume="va")
    alpha.call("volume.delete", name="va")
    assert alpha.rows() == []


def test_everything_is_ended_although_an_attached_volume_is_damaged(hosts):
    alpha, _ = hosts
    alpha.call("attach", volume="va")
    alpha.image("va").with_suffix(".meta").write_bytes(b"nonsense")
    end_process(alpha, "va")
    alpha.stop_all()
    alpha.start()
    alpha.call("detach", volume="va")
    alpha.call("volume.delete", name="va")


def test_a_hanging_process_is_not_passed_over_but_by_force(hosts):
    alpha, _ = hosts
    create(alpha)
    os.kill(alpha.volume("va")["pid"], signal.SIGSTOP)
    for dry_run in (True, False):
        error = refused(alpha, "pair.delete", pair="va", half=True, dry_run=dry_run)
        assert (error.code, "nothing was changed" in error.message) == (ErrorCode.TIMEOUT, True)
        assert "`pathctl pair delete va --half --force --yes`" in error.message
    assert alpha.call("pair.delete", pair="va", half=True, force=True, dry_run=True)["plan"]["steps"]
    alpha.call("pair.delete", pair="va", half=True, force=True)
    assert (alpha.rows(), alpha.volume("va")["incomplete"]) == ([{"volume": "va"}], False)


def test_what_becomes_of_an_attached_device_with_holes_is_said_first(hosts):
    alpha, beta = hosts
    alpha.call("pair.create", source="va", destination="beta:vb", invalidate="source", copy_rate_bytes_s=0)
    device = alpha.call("attach", volume="va")["device"]
    beta.kill()
    (lost,) = alpha.call("pair.delete", pair="va", half=True, dry_run=True)["plan"]["loses"]
    assert f"{device} is attached, and reading them from it will be an I/O error" in lost
    with open(device, "rb"):
        (lost,) = alpha.call("pair.delete", pair="va", half=True, dry_run=True)["plan"]["loses"]
    assert f"(pid {os.getpid()})" in lost
    beta.start()


def test_what_a_restore_advises_for_lost_files_is_what_works(hosts, tmp_path):
    alpha, _ = hosts
    create(alpha)
    alpha.call("attach", volume="va")
    alpha.call("backup.make", path=str(tmp_path / "copy"))
    alpha.stop_all()
    for folder in ("var", "etc"):
        shutil.rmtree(alpha.root / folder)
    cfg = config.at(alpha.root)
    plan = backup.restore(cfg, tmp_path / "copy", True)
    assert not [step for step in plan.steps if "keep the present" in step]
    done = backup.restore(cfg, tmp_path / "copy", False)
    assert not [line for line in done.contains if "replaced" in line]
    (line,) = [line for line in done.contains if line.startswith("volume va: ")]
    assert f"its backing {alpha.image('va')} cannot be opened" in line
    assert line.endswith("its copy is beta:vb")
    alpha.start()
    commands = line.split("`")[1::2]
    assert len(commands) == 3
    for command in commands:
        words = [BIN / "pathctl", "--root", alpha.root, *command.split()[1:]]
        ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
    assert alpha.rows() == []


def test_a_mounted_device_whose_process_is_dead_is_refused_until_it_is_unmounted(hosts, tmp_path):
    alpha, _ = hosts
    device = alpha.call("attach", volume="va")["device"]
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    place = tmp_path / "mnt"
    place.mkdir()
    subprocess.run(["mount", device, place], check=True)
    try:
        (process,) = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(alpha.root / "run/pathctl/va.fuse") in (process.info["cmdline"] or [])
        ]
        process.kill()
        wait_until(lambda: "has ended" in (alpha.volume("va")["failed"] or ""), "the device is dead")
        for verb in ("detach", "attach"):
            error = refused(alpha, verb, volume="va")
            assert (error.code, f"{device} is mounted at {place}" in error.message) == (ErrorCode.REFUSED, True)
    finally:
        subprocess.run(["umount", place], check=True)
    alpha.call("detach", volume="va")
    assert alpha.volume("va")["attached"] is False
    alpha.call("attach", volume="va")
