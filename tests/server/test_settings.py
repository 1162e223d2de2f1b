from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp

from brainstacks.config import EngineConfig, Quantization
from server.__main__ import main
from server.opening import engine_config
from server.settings import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"BRAINSTACKS_{name.upper()}", raising=False)


def parse(*arguments: str) -> Settings:
    return CliApp.run(Settings, cli_args=list(arguments))


def test_the_flags_of_the_contract_are_there() -> None:
    settings = parse(
        "--base", "b", "--registry", "r", "--host", "0.0.0.0", "--port", "1", "--quantization", "none",
        "--device", "cpu", "--dtype", "float32", "--api-key", "one", "--api-key", "two",
        "--admin-key", "boss",
        "--deterministic", "--drain-timeout", "2.5", "--max-upload-bytes", "2048", "--max-batch-size", "3",
        "--max-queue", "4",
    )  # fmt: skip
    assert [key.get_secret_value() for key in settings.api_key] == ["one", "two"]
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "boss"
    assert (settings.base, settings.registry, settings.port, settings.dtype) == ("b", "r", 1, "float32")
    assert (settings.drain_timeout, settings.max_upload_bytes, settings.deterministic) == (2.5, 2048, True)


def test_defaults_serve_the_packaged_base_in_its_own_bits_on_the_local_host() -> None:
    settings = parse()
    assert settings.base == "packaged:smollm2-135m-instruct"
    assert (settings.host, settings.port, settings.quantization) == ("127.0.0.1", 8000, None)
    assert settings.api_key == ()
    assert settings.admin_key is None


def test_every_quantization_can_be_asked_for() -> None:
    for quantization in get_args(Quantization):
        assert parse("--quantization", quantization).quantization == quantization


def test_every_flag_is_a_variable_and_the_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINSTACKS_PORT", "81")
    monkeypatch.setenv("BRAINSTACKS_API_KEY", "one,two")
    monkeypatch.setenv("BRAINSTACKS_MAX_QUEUE", "5")
    monkeypatch.setenv("BRAINSTACKS_ADMIN_KEY", "")  # an empty variable is an unset one
    settings = parse("--port", "82")
    assert settings.port == 82
    assert settings.max_queue == 5
    assert [key.get_secret_value() for key in settings.api_key] == ["one", "two"]
    assert settings.admin_key is None


@pytest.mark.parametrize("key", ["", "a b", "kéy", "a\n"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"admin_key": key})
    with pytest.raises(ValidationError):
        Settings.model_validate({"api_key": ("ok", key)})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "99999"],
        ["--quantization", "fp3"],
        ["--max-queue", "0"],
        ["--bogus", "1"],
        ["--drain-timeout", "-1"],
    ],
)
def test_wrong_options_exit_with_2_and_name_the_flag(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_missing_upload_directory_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--upload-dir", str(tmp_path / "missing"), "--base", "no-such-base"])
    assert stopped.value.code == 1
    assert "--upload-dir" in capsys.readouterr().err


def test_a_refused_option_does_not_print_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--admin-key", "top secret", "--api-key", "other secret"])
    shown = capsys.readouterr()
    assert "--admin-key" in shown.err
    assert "secret" not in shown.err + shown.out


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEYID:topsecret@bucket/x",
        "az://c/x?sig=topsecret",
        "hf://o/n?token=topsecret",
        "ftp://topsecret",
    ],
)
def test_a_registry_whose_url_holds_more_than_a_place_is_refused_and_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--registry", url])
    shown = capsys.readouterr()
    assert exited.value.code == 2
    assert "--registry" in shown.err
    assert "topsecret" not in shown.out + shown.err


def test_a_registry_may_be_in_a_bucket_and_its_cache_where_it_is_told(tmp_path: Path) -> None:
    settings = parse(
        "--registry", "s3://bucket/x", "--registry-cache", str(tmp_path), "--registry-cache-bytes", "9"
    )
    assert (settings.registry, settings.registry_cache) == ("s3://bucket/x", tmp_path)
    assert settings.registry_cache_bytes == 9
    assert (parse().registry_cache, parse().registry_cache_bytes) == (None, 16 << 30)


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all("--" + name.replace("_", "-") in text for name in Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


def test_the_engines_limits_come_from_the_settings() -> None:
    config = engine_config(parse("--max-batch-size", "3", "--max-context", "99", "--kv-cache-tokens", "1000"))
    assert (config.max_batch_size, config.max_context, config.kv_cache_tokens) == (3, 99, 1000)


def test_every_limit_of_the_engine_is_a_flag_with_the_same_default() -> None:
    assert engine_config(parse()) == EngineConfig()
    assert {field.name for field in dataclasses.fields(EngineConfig)} <= set(Settings.model_fields)


def test_deterministic_is_honoured_by_the_engine() -> None:
    assert engine_config(parse("--deterministic")).deterministic
    assert not engine_config(parse()).deterministic


@pytest.mark.parametrize(
    ("device", "known"), [("cuda:1", True), ("cuda:", False), ("cuda:x", False), ("tpu", False)]
)
def test_one_of_several_devices_can_be_named(device: str, known: bool) -> None:
    if known:
        assert parse("--device", device).device == device
        return
    with pytest.raises(ValidationError, match="device"):
        parse("--device", device)


@pytest.mark.parametrize("devices", ["auto", "cuda:0,cuda:1", "cuda:3,cuda:1,cuda:2", "cpu,cpu"])
def test_several_devices_can_be_named(devices: str) -> None:
    assert parse().device_map is None
    assert parse("--device-map", devices, "--backend", "torch").device_map == devices


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device-map", "cuda:1"), "'cuda:1' is no device map; .*for one device, take --device"),
        (("--device-map", "cuda:0,cpu"), "several devices of one kind, such as cuda:0,cuda:1"),
        (("--device-map", "auto", "--device", "cpu"), "and --device cpu too; leave one out"),
        (("--device-map", "auto", "--device", "cuda:1"), "and --device cuda:1 too; leave one out"),
        (("--device-map", "auto", "--backend", "cpu"), "torch alone .*; leave out --backend cpu"),
        (("--device-map", "auto", "--backend", "cuda"), "torch alone .*; leave out --backend cuda"),
    ],
)
def test_a_device_map_is_refused_with_what_it_cannot_be_with(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=f"device_map\n.*{said}"):
        parse(*arguments)


def test_origins_are_repeated_or_separated_by_commas_and_nothing_else_is_one() -> None:
    assert parse().cors_origin == ()
    asked = parse("--cors-origin", "https://a.example", "--cors-origin", "http://localhost:3000").cors_origin
    assert asked == ("https://a.example", "http://localhost:3000")
    assert parse("--cors-origin", "https://a.example,*").cors_origin == ("https://a.example", "*")
    for wrong in ("a.example", "https://a.example/", "https://*.example", "null"):
        with pytest.raises(ValidationError):
            parse("--cors-origin", wrong)


def test_what_is_shown_of_the_options_holds_no_secret() -> None:
    settings = Settings.model_validate(
        {"api_key": "alice=sk-one,sk-two", "admin_key": "sk-admin", "port": 81, "prefix_caching": False}
    )
    assert settings.shown() == "--no-prefix-caching --port 81 --api-key *** --api-key *** --admin-key ***"
    assert Settings().shown() == "every option at its default"


def test_what_only_a_fleet_has_needs_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--max-replicas=2", "--replica-cpus=2", "--replica-gpus=0.5", "--no-affinity"):
        with pytest.raises(SystemExit) as ended:
            main([flag])
        assert ended.value.code == 2
        assert "only with --replicas" in capsys.readouterr().err


def test_a_fleet_refuses_what_ray_serve_decides(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--replicas=2", "--max-connections=9", "--header-timeout=3"])
    assert "--max-connections, --header-timeout: not with --replicas" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--replicas=3", "--max-replicas=2"])
    assert "--max-replicas is 2" in capsys.readouterr().err
