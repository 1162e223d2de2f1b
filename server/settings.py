"""Every option, once: each is a flag (`--max-queue`) and a variable (`BRAINSTACKS_MAX_QUEUE`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from brainstacks.config import DEVICE_MAPS, DEVICE_NAMES, Quantization
from brainstacks.errors import ConfigError
from brainstacks.stacks.blob_cache import DEFAULT_BYTES
from brainstacks.stacks.location import check as check_location
from server.engine_settings import EngineSettings
from server.fleet.settings import FleetSettings
from server.keys import check_secret, collect
from server.log import Format
from server.tracing import check_endpoint


class Settings(EngineSettings, FleetSettings):
    """Serve composed MoE-LoRA stacks over an OpenAI-compatible API.

    Every flag can be set in the environment as BRAINSTACKS_<FLAG>; secrets are best given that way,
    because a process's arguments are visible to other users of the machine.
    """

    model_config = SettingsConfigDict(
        env_prefix="BRAINSTACKS_",
        env_ignore_empty=True,
        cli_prog_name="brainstacks-serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    base: str = Field(
        default="packaged:smollm2-135m-instruct",
        description="base model: a directory, a hub id, a .gguf file, or packaged:smollm2-135m-instruct",
    )
    registry: str = Field(
        default="stacks_registry",
        description="directory of the registry of stacks and routers, made where there is none; or "
        "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, hf://OWNER/NAME[@REVISION]",
    )
    registry_cache: Path | None = Field(
        default=None,
        description="where files of a registry elsewhere are kept; brainstacks/registry in the user's cache",
    )
    registry_cache_bytes: int = Field(
        default=DEFAULT_BYTES,
        ge=1,
        description="most bytes there; the least recently used files go",
    )
    registry_poll: float = Field(
        default=5.0,
        ge=0,
        le=86400,
        description="between two looks for what other processes changed in the registry; 0 never looks",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    quantization: Quantization | None = Field(
        default=None,
        description="how the base is held in memory; native is a .gguf file's own. When left out, native for "
        "a packaged base and nf4 for any other",
    )
    device: str = Field(
        default="auto",
        description="where the base runs: auto, cpu, cuda, or one of several, such as cuda:1",
    )
    device_map: str | None = Field(
        default=None,
        description="for a base that is larger than a device: GPUs that its layers go over, such as "
        "cuda:0,cuda:1, or auto, all of them; PyTorch computes it, no faster than one of them",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="computing type; the base's own when left out"
    )

    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="key for the inference routes: KEY, NAME=KEY or TENANT/NAME=KEY, where keys of a tenant "
        "share what the server remembers; repeat it, or separate by commas; none leaves them open",
    )
    api_key_file: Path | None = Field(
        default=None, description="file of further such keys, one a line; SIGHUP reads it again"
    )
    admin_key: SecretStr | None = Field(
        default=None, description="key for /admin; without one /admin is closed"
    )
    allowed_host: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="name in the Host header that is answered, * for any; repeat it, or separate by commas; "
        "without: any with API keys or beyond loopback, otherwise localhost's",
    )
    metrics: Literal["open", "admin"] = Field(
        default="open", description="who may read /metrics: everyone, or who has the admin key"
    )
    cors_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="origin of web pages that may call the inference routes, such as https://chat.example; "
        "repeat it, or separate by commas; * is any",
    )

    log_format: Format = Field(
        default="text", description="a line a record for people, or a JSON object a line"
    )

    otlp_endpoint: str | None = Field(
        default=None,
        description="OpenTelemetry collector that gets a trace of each request, as http://localhost:4318; "
        "needs the extra otel; none is traced",
    )
    check: bool = Field(
        default=False,
        description="load and try everything, say what would be served and what is wrong, and end: with 0, "
        "or with 1 where something is wrong",
    )

    drain_timeout: float = Field(
        default=30.0, ge=0, description="seconds that running requests get after SIGTERM"
    )
    max_body_bytes: int = Field(default=8 << 20, ge=1024, description="largest JSON body")
    max_upload_bytes: int = Field(default=2 << 30, ge=1024, description="largest stack or router file")
    max_connections: int = Field(
        default=4096, ge=1, description="most connections; past it the longest without a request is closed"
    )
    header_timeout: float = Field(
        default=10.0, gt=0, description="seconds until a request's headers must be complete"
    )
    max_header_bytes: int = Field(
        default=32 << 10, ge=1024, description="most bytes of headers in one request"
    )
    body_grace: float = Field(
        default=20.0,
        gt=0,
        description="seconds a body may take beyond what 16 KiB/s would; a slower one is closed",
    )
    upload_dir: Path | None = Field(
        default=None, description="where uploads are held until published; system's default"
    )
    key_requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="requests with a prompt or with tokens that a key may send a minute; no limit",
    )
    key_tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="tokens, prompts and completions, that a key may use a minute; no limit",
    )
    key_sequences: int | None = Field(
        default=None, ge=1, description="sequences (prompts x n) that a key may run at one time; no limit"
    )

    def shown(self) -> str:
        """Options that are not as they are by default, as flags; secrets are `***`."""
        shown = []
        for name, field in type(self).model_fields.items():
            value, flag = getattr(self, name), name.replace("_", "-")
            if value == field.default:
                continue
            if isinstance(value, bool):
                shown.append(f"--{flag}" if value else f"--no-{flag}")
                continue
            each = value if isinstance(value, tuple) else (value,)
            shown += [f"--{flag} {'***' if isinstance(one, SecretStr) else one}" for one in each]
        return " ".join(shown) or "every option at its default"

    @field_validator("registry")
    @classmethod
    def _check_registry(cls, registry: str) -> str:
        try:
            check_location(registry)
        except ConfigError as error:  # before the options are logged: a URL may hold a secret
            raise ValueError(error.message) from None
        return registry

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(DEVICE_NAMES, device):
            raise ValueError(
                f"{device!r} is no device; it is auto, cpu, cuda, or one of several, such as cuda:1"
            )
        return device

    @field_validator("device_map")
    @classmethod
    def _check_device_map(cls, devices: str | None, info: ValidationInfo) -> str | None:
        if devices is None:
            return None
        if not re.fullmatch(DEVICE_MAPS, devices):
            raise ValueError(
                f"{devices!r} is no device map; it is auto, or several devices of one kind, such as "
                "cuda:0,cuda:1; for one device, take --device"
            )
        if info.data.get("device", "auto") != "auto":
            raise ValueError(f"it names the devices, and --device {info.data['device']} too; leave one out")
        if (backend := info.data.get("backend", "auto")) not in ("auto", "torch"):
            raise ValueError(
                f"the backend torch alone computes over several devices; leave out --backend {backend}"
            )
        return devices

    @field_validator("api_key", "allowed_host", "cors_origin", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("api_key")
    @classmethod
    def _check_api_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        collect(keys, None)
        return keys

    @field_validator("api_key_file")
    @classmethod
    def _check_api_key_file(cls, file: Path | None) -> Path | None:
        collect((), file)
        return file

    @model_validator(mode="after")
    def _keys_differ(self) -> Settings:
        collect(self.api_key, self.api_key_file)
        return self

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            check_endpoint(endpoint)
        return endpoint

    @field_validator("cors_origin")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#*,]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin; it is a scheme and a host, such as https://chat.example, or *"
                )
        return origins

    @field_validator("admin_key")
    @classmethod
    def _check_admin_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            check_secret(key.get_secret_value())
        return key
