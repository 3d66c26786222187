"""Settings of the command line: sources, precedence, and what is said about bad ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_origin

import msgspec
import pytest

from crossband import Limits, Settings
from crossband.cli.settings import (
    HELP,
    SETTINGS,
    Given,
    Listen,
    Processes,
    SettingError,
    Tokens,
    misspelt,
    read,
    split,
)


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    """Write a TOML file and return its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "crossband.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_every_field_is_a_setting_with_help() -> None:
    fields = {
        field.name
        for struct in (Listen, Processes, Tokens, Settings)
        for field in msgspec.structs.fields(struct)
    }
    fields.remove("limits")
    fields |= {f"limits.{field.name}" for field in msgspec.structs.fields(Limits)}
    assert {setting.key for setting in SETTINGS} == fields
    assert set(HELP) == fields
    assert len({setting.parameter for setting in SETTINGS}) == len(SETTINGS)


# Of those where not any text will do.
EXAMPLES = {
    "jwt_algorithms": ("ES256", "EdDSA"),
    "cors_origins": ("https://a.example", "*"),
    "trusted_proxies": ("10.0.0.0/8", "unix"),
}


# Of settings that do not take any string.
WORDS = {
    "log_level": "debug",
    "status": "key",
    "uds_mode": "0660",
    "broker": "redis://127.0.0.1",
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: str(setting.key))
def test_every_setting_is_read_from_all_three_sources(setting: Any, toml: Any) -> None:
    value: Any
    text, in_toml, value = {
        float: ("1.5", "1.5", 1.5),
        int: ("7", "7", 7),
        bool: ("true", "true", True),
    }.get(setting.type, ("/x", '"/x"', "/x"))
    if get_origin(setting.type) is tuple:
        value = EXAMPLES.get(setting.key, ("a", "b"))
        text, in_toml = ", ".join(value), json.dumps(value)
    elif setting.key in WORDS:
        text = value = WORDS[setting.key]
        in_toml = json.dumps(value)
    option: Any = [text] if get_origin(setting.type) is tuple else text
    table, _, name = setting.key.rpartition(".")
    file = toml(f"[{table}]\n{name} = {in_toml}" if table else f"{name} = {in_toml}")
    expected = {setting.key: value}
    assert read({setting.parameter: option}, {}, None) == expected
    assert read({}, {setting.variable: text}, None) == expected
    assert read({}, {}, file) == expected


def test_option_wins_over_environment_over_file(toml: Any) -> None:
    file = toml("ping_interval = 1\nping_timeout = 1\nretry = 1\n[limits]\nrooms = 1")
    values = read(
        {"ping_interval": "3"},
        {"CROSSBAND_PING_INTERVAL": "2", "CROSSBAND_PING_TIMEOUT": "2"},
        file,
    )
    assert values == {"ping_interval": 3.0, "ping_timeout": 2.0, "retry": 1.0, "limits.rooms": 1}


def test_what_is_not_given_is_not_set() -> None:
    assert read({"port": None, "api_keys": []}, {"PATH": "/bin"}, None) == {}
    assert split({}) == Given(Listen(), Processes(), Tokens(), {}, {})


def test_settings_go_to_whom_they_concern() -> None:
    given = split({"port": 9000, "workers": 2, "retry": 1.0, "limits.rooms": 3})
    assert given.listen == Listen(port=9000)
    assert given.processes == Processes(workers=2)
    assert given.hub == {"retry": 1.0}
    assert given.limits == {"rooms": 3}


def test_lists_are_repeated_or_separated_by_commas() -> None:
    values = read({"cors_origins": ["https://a.example, https://b.example", "*"]}, {}, None)
    assert values == {"cors_origins": ("https://a.example", "https://b.example", "*")}
    # An empty variable empties the list.
    assert read({}, {"CROSSBAND_API_KEYS": ""}, None) == {"api_keys": ()}


@pytest.mark.parametrize("text", ["yes", "on", "TRUE", "1", " true "])
def test_words_for_true(text: str) -> None:
    assert read({}, {"CROSSBAND_RECOVERY": text}, None) == {"recovery": True}


@pytest.mark.parametrize("text", ["no", "Off", "false", "0"])
def test_words_for_false(text: str) -> None:
    assert read({}, {"CROSSBAND_RECOVERY": text}, None) == {"recovery": False}


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("CROSSBAND_PING_INTERVAL", "often", "a number of seconds, 0 or more, not 'often'"),
        ("CROSSBAND_PING_INTERVAL", "-1", "a number of seconds, 0 or more, not '-1'"),
        ("CROSSBAND_PING_INTERVAL", "nan", "a number of seconds"),
        ("CROSSBAND_PING_INTERVAL", "inf", "a number of seconds"),
        ("CROSSBAND_PING_INTERVAL", "", "a number of seconds"),
        ("CROSSBAND_PORT", "80.5", "a port, 0 to 65535, not '80.5'"),
        ("CROSSBAND_PORT", "65536", "a port, 0 to 65535, not '65536'"),
        ("CROSSBAND_LIMITS_ROOMS", "many", "a whole number"),
        ("CROSSBAND_LIMITS_MESSAGE_RATE", "-1", "a number per second, 0 or more, not '-1'"),
        ("CROSSBAND_LIMITS_ROOMS", "9" * 5000, "a whole number"),
        ("CROSSBAND_RECOVERY", "maybe", "true or false, not 'maybe'"),
        ("CROSSBAND_RECOVERY", "", "true or false"),
        ("CROSSBAND_HOST", "", "a string that is not empty, not ''"),
        ("CROSSBAND_JWT_SECRET", "", "a string that is not empty"),
        ("CROSSBAND_JWT_ISSUER", "", "a list of strings, at least one, not ''"),
        ("CROSSBAND_LOG_LEVEL", "loud", "one of critical, error, warning, info, debug, not 'loud'"),
    ],
)
def test_bad_variable_is_named_with_what_was_expected(
    variable: str, text: str, expected: str
) -> None:
    with pytest.raises(SettingError) as caught:
        read({}, {variable: text}, None)
    assert str(caught.value).startswith(f"{variable}: expected ")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("CROSSBAND_LIMITS_ROOMS", "0", "must be a whole number above 0, not 0"),
        ("CROSSBAND_PING_INTERVAL", "0", "must be a number of seconds above 0"),
        ("CROSSBAND_API_KEYS", "ключ", "must be non-empty ASCII strings"),
        ("CROSSBAND_CORS_ORIGINS", "a.example", "takes origins such as"),
        ("CROSSBAND_JWT_ALGORITHMS", "none", "'none' is not one of"),
    ],
)
def test_value_that_its_struct_refuses_is_named(variable: str, text: str, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{variable}: {message}"):
        read({}, {variable: text}, None)


def test_variable_that_is_no_text_is_named() -> None:
    with pytest.raises(SettingError, match=r"^CROSSBAND_JWT_SECRET: it is not UTF-8$"):
        read({}, {"CROSSBAND_JWT_SECRET": "\udcff" + "s" * 32}, None)


def test_path_may_be_what_another_one_was() -> None:
    values = read({"api_path": "/ws", "websocket_path": "/live"}, {}, None)
    assert values == {"api_path": "/ws", "websocket_path": "/live"}


def test_bad_option_is_named() -> None:
    with pytest.raises(SettingError, match=r"^--limits-rooms: expected a whole number"):
        read({"limits_rooms": "x"}, {}, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ping_intervall = 1", "unknown key 'ping_intervall'; did you mean 'ping_interval'?"),
        ("[limits]\nroms = 1", "unknown key 'limits.roms'; did you mean 'limits.rooms'?"),
        ("rooms = 1", "unknown key 'rooms'; it belongs in the table [limits]"),
        ("colour = 1", "unknown key 'colour'"),
        ("[server]\nport = 1", "unknown key 'server'"),
        ("limits = 5", "expected a table [limits], not 5"),
        ("ping_interval = 'x'", "ping_interval: expected a number of seconds, 0 or more, not 'x'"),
        ("ping_interval = true", "ping_interval: expected a number of seconds"),
        ("ping_interval = nan", "ping_interval: expected a number of seconds"),
        ("history_size = 1.5", "history_size: expected a whole number"),
        ("host = 5", "host: expected a string that is not empty, not 5"),
        ("api_keys = [1]", "api_keys: expected a list of strings, not [1]"),
        ("api_keys = 1", "api_keys: expected a list of strings, not 1"),
        ("[limits]\nrooms = -1", "limits.rooms: expected a whole number, 0 or more, not -1"),
        ("ping_interval =", "is not TOML: Invalid value (at end of document)"),
        (b"host = '\xff'", "is not TOML"),
    ],
)
def test_bad_file_is_named_with_its_key(text: str | bytes, message: str, toml: Any) -> None:
    file = toml(text)
    with pytest.raises(SettingError, match=re.escape(message)) as caught:
        read({}, {}, file)
    assert str(caught.value).startswith(str(file))


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"cannot read .*No such file"):
        read({}, {}, tmp_path / "no.toml")
    with pytest.raises(SettingError, match=r"cannot read .*directory"):
        read({}, {}, tmp_path)


def test_kubernetes_port_variable_is_not_ours() -> None:
    environ = {"CROSSBAND_PORT": "tcp://10.0.0.7:8000", "CROSSBAND_SERVICE_HOST": "10.0.0.7"}
    assert read({}, environ, None) == {}
    assert misspelt(environ) == []


def test_misspelt_variable_is_warned_about() -> None:
    assert misspelt({"CROSSBAND_PING_INTERVL": "1", "CROSSBAND_CONFIG": "x"}) == [
        "CROSSBAND_PING_INTERVL is not a setting; did you mean CROSSBAND_PING_INTERVAL?"
    ]
