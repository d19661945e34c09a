"""Every knob, documented once. The command line and the plan file are derived from these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any, Literal, cast

from trimtab.errors import ConfigError

WeightFormat = Literal["f32", "bf16", "int8", "int4", "fp8"]
LogFormat = Literal["text", "json"]
KVFormat = Literal["f32", "bf16", "int8", "fp8"]
Device = Literal["cpu", "cuda", "torch-cpu"]
# device=cpu has no float8 arithmetic; what a checkpoint stores as float8 it takes all the same.
CPU_WEIGHT_FORMATS: tuple[WeightFormat, ...] = ("f32", "bf16", "int8", "int4")
WEIGHT_FORMATS: tuple[WeightFormat, ...] = (*CPU_WEIGHT_FORMATS, "fp8")
DEVICES: tuple[Device, ...] = ("cpu", "cuda", "torch-cpu")
CPU_KV_FORMATS: tuple[KVFormat, ...] = ("f32", "bf16", "int8")
KV_FORMATS: tuple[KVFormat, ...] = (*CPU_KV_FORMATS, "fp8")
# What the executor of a device takes; what the optimizer tries there follows from it.
DEVICE_WEIGHTS: dict[Device, tuple[WeightFormat, ...]] = {
    "cpu": CPU_WEIGHT_FORMATS,
    "cuda": WEIGHT_FORMATS,
    "torch-cpu": WEIGHT_FORMATS,
}
DEVICE_KV: dict[Device, tuple[KVFormat, ...]] = {
    "cpu": CPU_KV_FORMATS,
    "cuda": KV_FORMATS,
    "torch-cpu": KV_FORMATS,
}
GROUP_SIZES = (32, 64, 128)
PROPOSERS = ("lookup", "draft", "heads")
_ORIGIN = re.compile(r"(\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9._\[\]:-]+)\Z")


def parse_weights(label: str) -> tuple[WeightFormat, int]:
    """`int4-g64` -> ("int4", 64), `int8` -> ("int8", 0): weights and group_size of ExecutorConfig.
    ConfigError for what is no label."""
    name, _, group = label.partition("-g")
    grouped = group == "" or (name in ("int8", "int4") and group in map(str, GROUP_SIZES))
    if name not in WEIGHT_FORMATS or not grouped or label.endswith("-g"):
        raise ConfigError(
            f"weight format {label!r}: use f32, bf16, fp8, int8 or int4, the last two also with "
            "-g32, -g64 or -g128"
        )
    return name, int(group or 0)


def knob(
    default: Any,
    help: str,
    secret: bool = False,
    search: tuple[Any, ...] = (),
    search_on: Mapping[Device, tuple[Any, ...]] | None = None,
) -> Any:
    """A documented dataclass field; `help` becomes the option's help text. A secret stays out of
    the repr. `search`: values that the optimizer tries; `search_on`: on devices where it tries
    others, or none."""
    searched = dict.fromkeys(DEVICES, search) | dict(search_on or {})
    return field(default=default, metadata={"help": help, "search": searched}, repr=not secret)


def search_values(one: Field[Any], device: Device) -> tuple[Any, ...]:
    """Of a field made by `knob`: what the optimizer tries on a device."""
    searched: Mapping[Device, tuple[Any, ...]] = one.metadata.get("search", {})
    return searched.get(device, ())


@dataclass(frozen=True)
class ExecutorConfig:
    """How the model is held and run. Everything here that changes numbers enters its identity."""

    weights: WeightFormat = knob(
        "bf16",
        "weight format: f32 (reference), bf16, int8 (per channel or grouped) or int4 (grouped); "
        "cuda: also fp8 (e4m3, per channel)",
    )
    group_size: int = knob(
        0,
        "int8, int4: input columns that share a scale (32, 64 or 128); "
        "0 = all of a channel for int8, 64 for int4",
    )
    kv_cache: KVFormat = knob(
        "bf16", "KV cache format: f32 (reference), bf16 or int8; cuda: also fp8 (e4m3)"
    )
    threads: int = knob(0, "compute threads; 0 = the cores this process may use")
    kv_cache_gib: float = knob(
        0.0,
        "KV cache size in GiB; 0 = 16 sequences of max_context, at most a quarter of free memory",
    )
    num_blocks: int = knob(0, "KV cache size in blocks; 0 = derived from kv_cache_gib")
    device: Device = knob(
        "cpu", "cpu, cuda, or torch-cpu (slow: the GPU's executor without one, for tests)"
    )
    memory_share: float = knob(
        0.9,
        "cuda: part of the GPU's memory for weights, KV cache and steps together",
        search_on={"cuda": (0.8, 0.9, 0.95)},
    )
    host_cache_gib: float = knob(
        0.0, "cuda: GiB of host memory that keep blocks evicted from the KV cache; 0 = none"
    )
    max_context: int = knob(
        0, "longest prompt + completion in tokens; 0 = what the model was trained for"
    )

    def __post_init__(self) -> None:
        if self.weights not in WEIGHT_FORMATS:
            raise ConfigError(f"weights={self.weights!r}: must be one of {WEIGHT_FORMATS}")
        if self.kv_cache not in KV_FORMATS:
            raise ConfigError(f"kv_cache={self.kv_cache!r}: must be one of {KV_FORMATS}")
        if self.device not in DEVICES:
            raise ConfigError(f"device={self.device!r}: must be one of {DEVICES}")
        for name, takes in (("weights", DEVICE_WEIGHTS), ("kv_cache", DEVICE_KV)):
            if getattr(self, name) not in takes[self.device]:
                known = ", ".join(takes[self.device])
                raise ConfigError(
                    f"{name}={getattr(self, name)}: device={self.device} takes {known}"
                )
        if not 0 < self.memory_share <= 1:
            raise ConfigError(f"memory_share={self.memory_share}: must be above 0 and at most 1")
        if self.group_size not in (0, *GROUP_SIZES):
            raise ConfigError(f"group_size={self.group_size}: must be one of {GROUP_SIZES}, or 0")
        for name in ("threads", "num_blocks", "max_context"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("kv_cache_gib", "host_cache_gib"):
            if not 0 <= getattr(self, name) < 1 << 20:
                raise ConfigError(f"{name}={getattr(self, name)}: must not be negative")
        if self.host_cache_gib and self.device == "cpu":
            raise ConfigError("host_cache_gib: device=cpu has its KV cache there; set kv_cache_gib")

    @property
    def scale_group(self) -> int:
        """Input columns that share a scale; 0 = none do, or all of a channel."""
        if self.weights == "int4":
            return self.group_size or 64
        return self.group_size if self.weights == "int8" else 0

    @property
    def weights_label(self) -> str:
        """For people: `int4-g64`, `int8`, `bf16`."""
        return f"{self.weights}-g{self.scale_group}" if self.scale_group else self.weights


@dataclass(frozen=True)
class SchedulerConfig:
    """How requests are put into steps. Nothing here can change an answer."""

    max_batch_tokens: int = knob(
        512,
        "token budget of one step (prefill chunks + decodes)",
        search=(64, 128, 256, 512, 1024, 2048),
        search_on={"cuda": (512, 1024, 2048, 4096, 8192)},
    )
    max_num_requests: int = knob(
        64,
        "requests that may run in one step",
        search=(4, 8, 16, 32, 64, 128),
        search_on={"cuda": (32, 64, 128, 256, 512)},
    )
    max_queued_requests: int = knob(512, "requests that may wait; one more is refused with 429")
    prefix_cache: bool = knob(
        True, "keep computed blocks and share them between requests", search=(True, False)
    )
    speculative: str = knob(
        "auto",
        "who guesses tokens ahead: off; lookup, draft or heads, several joined by + ; "
        "auto = lookup, and heads or a draft model where there are any",
        search=("auto", "off"),
        search_on={"cuda": (), "torch-cpu": ()},  # there auto means off: docs/gpu.md
    )
    draft_model: str | None = knob(
        None, "smaller MODEL with the same tokenizer, to guess; builtin has one of its own"
    )
    draft_heads: str | None = knob(
        None, "directory of trained draft heads (EAGLE-3) for this model, to guess"
    )
    max_draft_tokens: int = knob(16, "longest guess; how long each is follows from measurements")
    shared_lookup: bool = knob(
        False, "lookup: also in what other requests with the same cache salt were answered"
    )
    grammar_cache_mib: int = knob(
        64, "MiB of compiled grammars that are kept for requests with the same one; an estimate"
    )

    def __post_init__(self) -> None:
        for name in (
            "max_batch_tokens",
            "max_num_requests",
            "max_queued_requests",
            "max_draft_tokens",
            "grammar_cache_mib",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        unknown = set(self.speculative.split("+")) - {"auto", "off", *PROPOSERS}
        alone = self.speculative in ("auto", "off") or {"auto", "off"}.isdisjoint(self.proposers)
        if unknown or not alone or len(set(self.proposers)) < len(self.proposers):
            raise ConfigError(
                f"speculative={self.speculative!r}: use auto, off, or lookup, draft or heads, "
                "several joined by +"
            )

    @property
    def proposers(self) -> tuple[str, ...]:
        """What `speculative` names: `auto` and `off` alone, the others in the order of asking."""
        return tuple(self.speculative.split("+"))


@dataclass(frozen=True)
class ServerConfig:
    """The front process."""

    host: str = knob("127.0.0.1", "address to listen on")
    port: int = knob(8000, "port to listen on")
    served_model_name: str | None = knob(None, "model name in the API; default: the model's own")
    page: bool = knob(True, "serve a page at / to chat and to watch; it is open, its calls are not")
    report: str | None = knob(
        None,
        "HTML file to show at /report, open like the page; default: report.html beside a plan",
    )
    api_key: str | None = knob(
        None,
        "require this key on every route but /health and /ready; a process list shows it: "
        "better TRIMTAB_API_KEY, or a file",
        secret=True,
    )
    api_key_file: str | None = knob(
        None, "more keys, with limits: lines of NAME KEY [REQUESTS_PER_MINUTE [TOKENS_PER_MINUTE]]"
    )
    admin_key: str | None = knob(
        None,
        "open /v1/admin to this key; better TRIMTAB_ADMIN_KEY. Without one there is no such route",
        secret=True,
    )
    open_metrics: bool = knob(False, "let anybody read /metrics, without a key")
    cors_origin: str = knob(
        "", "origins whose web pages may call this server, separated by commas; * = all"
    )
    log_requests: bool = knob(False, "log each request: ids, status, tokens, times; never texts")
    log_format: LogFormat = knob("text", "text, or json: one object a line, on standard error")
    otlp_endpoint: str | None = knob(
        None, "send traces there: http://host:4318, a collector of OpenTelemetry; trimtab[otel]"
    )
    max_connections: int = knob(16384, "open connections; one more is refused with 503")
    max_body_bytes: int = knob(16 << 20, "largest request body")
    tool_parser: str = knob(
        "auto",
        "how the model writes tool calls: hermes (Qwen, too), llama3, mistral, json, none; "
        "auto = by its chat template and vocabulary",
    )
    reasoning_parser: str = knob(
        "auto",
        "how the model marks its reasoning: think, magistral, cohere, seed, thought, none; "
        "auto = by its chat template and vocabulary",
    )
    drain_seconds: float = knob(30.0, "how long SIGTERM waits for running requests")
    timeout_seconds: float = knob(
        0.0, "longest that a request may take, waiting included; 0 = as long as it takes"
    )
    stall_seconds: float = knob(
        30.0, "replace an engine process that has work and got no further for so long"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port={self.port}: must be in [0, 65535] (0 = any free one)")
        if self.log_format not in ("text", "json"):
            raise ConfigError(f"log_format={self.log_format!r}: must be text or json")
        for name in ("max_body_bytes", "max_connections"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.drain_seconds < 1 << 31:
            raise ConfigError(f"drain_seconds={self.drain_seconds}: must not be negative")
        if not 0 <= self.timeout_seconds < 1 << 31:
            raise ConfigError(f"timeout_seconds={self.timeout_seconds}: must not be negative")
        if not 1 <= self.stall_seconds < 1 << 31:
            raise ConfigError(f"stall_seconds={self.stall_seconds}: must be at least 1")
        for name in ("api_key", "api_key_file", "admin_key", "served_model_name"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name}: must not be empty")
        if not all(_ORIGIN.match(one) for one in self.cors_origin.replace(",", " ").split()):
            raise ConfigError(f"cors_origin={self.cors_origin!r}: use https://host[:port], or *")


def replace_from(cls: type[Any], values: dict[str, Any]) -> Any:
    """An instance of a config dataclass from a flat mapping; unknown keys raise ConfigError."""
    unknown = set(values) - set(cls.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"unknown {cls.__name__} setting: {', '.join(sorted(unknown))}")
    return cast(Any, cls(**values))
