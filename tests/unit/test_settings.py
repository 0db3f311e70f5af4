"""The table of settings, the file made of it, and what is told of a wrong one."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathctl import settings, shapes
from pathctl.errors import ErrorCode, PathctlError

KEYS = sorted(settings.table())
NUMBERS = [path for path in KEYS if settings.table()[path].kind is not str]


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "pathctl.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(folder: Path, text: str | bytes) -> str:
    """What is said of this file, which must name it."""
    file = write(folder, text)
    with pytest.raises(PathctlError) as caught:
        settings.read(file)
    assert caught.value.code == ErrorCode.USAGE
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message.replace(str(file), "FILE")


def line_of(path: str, value: str) -> str:
    section, name = path.split(".")
    return f"[{section}]\n{name} = {value}\n"


def value_of(found: settings.Settings, path: str) -> object:
    section, name = path.split(".")
    return getattr(getattr(found, section), name)


def test_an_empty_file_is_all_defaults(tmp_path):
    found = settings.read(write(tmp_path, ""))
    assert found == settings.Found(settings.Settings(), {})
    assert all(value_of(found.settings, path) == entry.default for path, entry in settings.table().items())


def test_the_defaults_fit_each_other_and_are_allowed():
    assert list(settings._clashes(settings.Settings())) == []
    for entry in settings.table().values():
        if entry.kind is not str and entry.default is not None:
            assert entry.key.low <= entry.default <= entry.key.high, entry.path


@pytest.mark.parametrize("path", KEYS)
def test_every_key_has_a_unit_and_a_reason(path):
    key = settings.table()[path].key
    assert key.unit
    assert len(key.reason) > 10


@pytest.mark.parametrize("path", KEYS)
def test_every_key_takes_its_default_from_a_file_and_remembers_the_line(tmp_path, path):
    text = "# a remark\n\n" + line_of(path, settings._toml(settings.table()[path].default))
    found = settings.read(write(tmp_path, text))
    assert value_of(found.settings, path) == settings.table()[path].default
    assert found.lines[path] == 4


@pytest.mark.parametrize("path", KEYS)
@pytest.mark.parametrize("value", ["true", "[]", "{}", '"nonsense"', "1979-05-27", "nan", "-1", "1e300"])
def test_every_key_refuses_what_is_of_another_kind_with_the_line_and_what_would_do(tmp_path, path, value):
    said = refusal(tmp_path, line_of(path, value))
    wants = "ADDRESS:PORT" if path == "metrics.listen" else settings.table()[path].wants()
    assert said.startswith(f"FILE, line 2: {path} cannot be ")
    assert wants in said


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_refuses_what_is_out_of_its_range_and_names_the_range(tmp_path, path):
    key = settings.table()[path].key
    for value in (key.low - 1, key.high + 1):
        said = refusal(tmp_path, line_of(path, str(value)))
        assert f"from {settings._number(key.low)} to {settings._number(key.high)}" in said


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_takes_its_bounds(path):
    entry = settings.table()[path]
    assert [settings._convert(entry, bound) for bound in (entry.key.low, entry.key.high)] == [
        entry.key.low,
        entry.key.high,
    ]


@pytest.mark.parametrize("path", KEYS)
def test_every_key_is_suggested_when_it_is_misspelt(tmp_path, path):
    section, name = path.split(".")
    said = refusal(tmp_path, f"[{section}]\n{name}x = 1\n")
    assert said == f"FILE, line 2: there is no key {name}x in [{section}]; did you mean {name}?"


def test_what_is_no_number_of_a_whole_is_refused(tmp_path):
    assert "cannot be 1.5" in refusal(tmp_path, "[data]\nlink_timeout_s = 1.5\n")
    assert settings.read(write(tmp_path, "[timeouts]\nretry_s = 1\n")).settings.timeouts.retry_s == 1.0


@pytest.mark.parametrize(
    ("text", "rate"),
    [('"50M"', 50 << 20), ('"50M/s"', 50 << 20), ("0", 0), ('"0"', 0), ("1000", 1000), ('"none"', None)],
)
def test_a_rate_is_a_number_or_written_as_people_do(tmp_path, text, rate):
    assert settings.read(write(tmp_path, f"[copy]\nrate_bytes_s = {text}\n")).settings.copy.rate_bytes_s == rate


def test_sections_and_keys_in_the_wrong_place_are_told(tmp_path):
    assert refusal(tmp_path, "\n[tiemouts]\n").startswith(
        "FILE, line 2: there is no section [tiemouts]; did you mean timeouts?"
    )
    assert "sections are log, events" in refusal(tmp_path, "[zzz]\n")
    assert "write it below [data]" in refusal(tmp_path, "port_first = 1\n")
    assert "it stands in [data]" in refusal(tmp_path, "[log]\nport_first = 1\n")
    assert "did you mean port_first?" in refusal(tmp_path, "port_frist = 1\n")
    assert "data is a section" in refusal(tmp_path, "data = 3\n")
    assert "data is a section" in refusal(tmp_path, "[[data]]\n")
    assert '"a\\nb"' in refusal(tmp_path, '["a\\nb"]\n')


def test_everything_that_is_wrong_is_told_at_once_in_the_order_of_lines(tmp_path):
    said = refusal(tmp_path, "[log]\nlevel = 3\n[data]\nlink_timeout_s = 0\n[nothing]\n")
    assert re.findall(r"line (\d+)", said) == ["2", "4", "5"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[log]\nlevel = \n", 2),
        ("[log\n", 1),
        ('[log]\nlevel = "info', 2),
        ("[log]\n[log]\n", 2),
        ('[log]\nlevel = "info"\n\nlevel = "debug"\n', 4),
        ("[copy]\nrate_bytes_s = [1,\n2\n\n", 3),
        ("[copy]\nrate_bytes_s = 50M\n", 2),
        ("[copy]\nrate_bytes_s = " + "[" * 5000, 1),
    ],
)
def test_a_file_that_is_no_toml_is_told_with_the_line(tmp_path, text, line):
    said = refusal(tmp_path, text)
    assert said.startswith(f"FILE, line {line}: this is no TOML: "), said


def test_a_file_that_is_no_text_or_cannot_be_read_is_told(tmp_path):
    assert refusal(tmp_path, b"[log]\n# gr\xfc\xdf\n").startswith("FILE, line 2: this is not UTF-8")
    assert "no settings file" in refusal(tmp_path, b"#" * (settings.FILE_MOST + 1))
    with pytest.raises(PathctlError, match="cannot be read: Is a directory"):
        settings.read(tmp_path)
    with pytest.raises(PathctlError) as caught:
        settings.read(tmp_path / "none.toml")
    assert caught.value.code == ErrorCode.NOT_FOUND


def test_lines_are_found_in_every_way_of_writing_a_key(tmp_path):
    text = '''events.keep = 200
copy = { rate_bytes_s = "1M" }
[log] # a remark
"level" = """
info""" # it has two lines
'lines_per_minute' = 5
[ data ]

port_first   = 1
'''
    text = text.replace('"""\ninfo"""', '"""\\\n   info"""')
    found = settings.read(write(tmp_path, text))
    assert found.lines == {
        "events": 1,
        "events.keep": 1,
        "copy": 2,
        "copy.rate_bytes_s": 2,
        "log": 3,
        "log.level": 4,
        "log.lines_per_minute": 6,
        "data": 7,
        "data.port_first": 9,
    }


def test_a_line_ends_where_toml_says_and_nowhere_else(tmp_path):
    text = "# a\u2028b\x85c\r\n[log]\r\nlevel = 'debug'\r\n"
    assert settings.read(write(tmp_path, text)).lines == {"log": 2, "log.level": 3}


WORDS = '[log]|[data]|[[copy]]|level|port_first|keep| = |=|"|"""|\'|[|]|{|}|#|.|,|1|-1|50M|true|nan|1979-05-27|\\'
PIECES = st.sampled_from([*WORDS.split("|"), "\n", "\n", "\r\n", "\x00", "\x1b", "\u202e"]) | st.text(max_size=3)


def outcome(file: Path) -> settings.Found | PathctlError:
    try:
        return settings.read(file)
    except PathctlError as error:
        return error


@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_text_is_settings_or_refused_with_one_line_that_can_be_printed(tmp_path_factory, text):
    found = outcome(write(tmp_path_factory.getbasetemp(), text.encode(errors="surrogatepass")))
    if isinstance(found, PathctlError):
        assert found.code == ErrorCode.USAGE
        assert found.message.isprintable(), repr(found.message)
        assert re.search(r", line \d+: ", found.message)
    else:
        assert all(1 <= line <= text.count("\n") + 1 for line in found.lines.values())


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[data]\nport_first = 7900\n", 2, "port_first (7900) is above data.port_last (7899)"),
        ("[timeouts]\ncontrol_s = 60\n", 2, "must be above data.command_timeout_s + data.flush_timeout_s (60)"),
        ("[timeouts]\ncontrol_s = 76\n[data]\nflush_timeout_s = 46\n", 4, "control_s (76) must be above"),
        ("[timeouts]\npeer_step_s = 105\n", 2, "must be above timeouts.start_s + timeouts.control_s (105)"),
        ("[timeouts]\nverb_s = 100\n", 2, "must not be below timeouts.peer_step_s (120)"),
        ('[metrics]\nlisten = "127.0.0.1:7800"\n', 2, "takes a port of the data plane's (7700 to 7899)"),
        ("[data]\nmax_waiters = 288\n", 2, "from 256 to 287"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_told(tmp_path, text, line, said):
    found = refusal(tmp_path, text)
    assert found.startswith(f"FILE, line {line}: ")
    assert said in found


ELSEWHERE = ["0.0.0.0:9630", "192.0.2.1:9630", "localhost:9630"]
NO_ENDPOINT = ["127.0.0.1", ":9630", "127.0.0.1:0", "127.0.0.1:65536", "[::1]", "127.0.0.1:x", "127.0.0.1:+1"]


@pytest.mark.parametrize("listen", ELSEWHERE + NO_ENDPOINT)
def test_metrics_are_served_on_loopback_only(tmp_path, listen):
    assert "metrics.listen cannot be" in refusal(tmp_path, f'[metrics]\nlisten = "{listen}"\n')


def test_loopback_addresses_are_taken():
    assert [settings.split_listen(settings.check_listen(text)) for text in ("127.0.0.2:9630", "[::1]:9630")] == [
        ("127.0.0.2", 9630),
        ("::1", 9630),
    ]


def test_what_holds_and_where_it_comes_from_is_told(tmp_path):
    file = write(tmp_path, '[log]\nlevel = "debug"\n')
    answer = settings.check(file)
    found = {item["key"]: item for item in answer["settings"]}
    assert list(found) == list(settings.table())
    assert found["log.level"]["value"] == "debug"
    assert (found["log.level"]["source"], found["log.level"]["default"]) == (f"{file}:2", "info")
    assert found["copy.rate_bytes_s"]["source"] == "default"
    msgspec.convert({"version": 1, **answer}, shapes.ConfigAnswer)


def test_a_file_that_is_not_there_is_no_mistake_only_where_it_may_be_missing(tmp_path):
    answer = settings.check(tmp_path / "none.toml", is_optional=True)
    assert {item["source"] for item in answer["settings"]} == {"default"}
    with pytest.raises(PathctlError, match="there is no settings file"):
        settings.check(tmp_path / "none.toml")


def test_the_example_file_shows_every_key_and_loads(tmp_path):
    printed = subprocess.run(
        [sys.executable, "-m", "pathctl.settings"], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert settings.read(write(tmp_path, printed)).settings == settings.Settings()
    uncommented = re.sub(r"^#(?=\w+ = )", "", printed, flags=re.MULTILINE)
    tree = tomllib.loads(uncommented)
    assert sorted(f"{section}.{name}" for section, names in tree.items() for name in names) == KEYS
    found = settings.read(write(tmp_path, uncommented))
    assert found.settings == settings.Settings()
    assert set(KEYS) <= set(found.lines)
