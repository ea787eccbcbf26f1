"""Plain values from conf/ as frozen dataclasses, checked when they are read, so that other code gets no untyped dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

from abkt.policy.admission.base import AdmissionPolicy
from abkt.policy.build import build
from abkt.policy.roles.base import RolesPolicy
from abkt.policy.routing.base import RoutingPolicy
from abkt.policy.view import BitratePolicy
from abkt.profile import schema
from abkt.profile.roofline import GpuSpec, kv_tokens, profile_of
from abkt.profile.schema import Profile
from abkt.ranges import OutOfRange, bound, short
from abkt.spec import ModelSpec
from experiments.lib.curves import load_curves

T = TypeVar("T")
MOST_NODES, MOST_WORKERS, MOST_BATCH = 100_000, 1_000, 1_000_000
BLOCK_TOKENS = 16  # tokens of a KV block, the least that a pool can hold
STRICT = ConfigDict(extra="forbid")  # for every verb's configuration class and the classes in it


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """prefill, decode: number of instances of each role; prefill=0: all instances do both. max_batch: most requests in one decode
    iteration."""

    prefill: int
    decode: int
    max_batch: int

    def __post_init__(self) -> None:
        bound(self, "prefill", least=0, most=MOST_NODES)
        bound(self, "decode", least=1, most=MOST_NODES)
        bound(self, "max_batch", least=1, most=MOST_BATCH)


@dataclass(frozen=True, slots=True)
class MeasuredHardware:
    """A machine that `abkt profile` measured. profile: its profile.json. kv_tokens: tokens of KV that one instance holds."""

    profile: Path
    kv_tokens: int
    usd_per_hour: float = 0.0

    def __post_init__(self) -> None:
        bound(self, "kv_tokens", least=1)
        bound(self, "usd_per_hour", least=0)


Hardware = Annotated[
    Annotated[GpuSpec, Tag("GpuSpec")] | Annotated[MeasuredHardware, Tag("MeasuredHardware")],
    Discriminator(lambda value: kind_of(value, "profile", "MeasuredHardware", "GpuSpec")),
]


def _buildable(values: dict[str, Any], protocol: type | None = None) -> dict[str, Any]:
    build(values, protocol)
    return values


# A policy's configuration, as abkt.policy.build takes it. It is built once when it is read, so that a bad class or field is refused then.
PolicyConfig = Annotated[dict[str, Any], AfterValidator(_buildable)]
BitrateConfig = Annotated[dict[str, Any], AfterValidator(partial(_buildable, protocol=BitratePolicy))]
RoutingConfig = Annotated[dict[str, Any], AfterValidator(partial(_buildable, protocol=RoutingPolicy))]
RolesConfig = Annotated[dict[str, Any], AfterValidator(partial(_buildable, protocol=RolesPolicy))]
AdmissionConfig = Annotated[dict[str, Any], AfterValidator(partial(_buildable, protocol=AdmissionPolicy))]


def _existing(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; a file is needed")
    return path


def _readable(path: Path) -> Path:
    schema.load(path.expanduser())
    return path.expanduser()


FilePath = Annotated[Path, AfterValidator(_existing)]  # a file that exists when the configuration is read
ProfilePath = Annotated[Path, AfterValidator(_readable)]  # a profile.json, which is read once then, so that a bad one is refused


def kind_of(value: Any, key: str, having: str, lacking: str) -> str:
    """The class of a union that plain values stand for: `having` if they have `key`, otherwise `lacking`. An object has its own class."""
    return (having if key in value else lacking) if isinstance(value, Mapping) else type(value).__name__


@dataclass(frozen=True, slots=True)
class Instance:
    """One serving instance for the simulator. profile: its costs. kv_tokens: tokens of KV that fit in its memory besides the weights."""

    profile: Profile
    kv_tokens: int
    usd_per_hour: float


def instance(hardware: GpuSpec | MeasuredHardware, model: ModelSpec, curves: Path) -> Instance:
    """The instance of a GPU or a measured machine. curves: file of rate curves, for hardware without its own.

    Raises ValueError where the profile or the curves cannot be read, the profile is of another model, or the model does not fit.
    """
    if isinstance(hardware, GpuSpec):
        return Instance(profile_of(hardware, model, load_curves(curves)), kv_tokens(hardware, model), hardware.usd_per_hour)
    profile = schema.load(hardware.profile)
    if profile.model.kv_bytes_per_token != model.kv_bytes_per_token:
        raise ValueError(f"profile {hardware.profile} is of model {profile.model.name}, not {model.name}; choose that one with model=")
    if not profile.curves:  # measured on a device without KV of a real model
        profile = replace(profile, curves=load_curves(curves))
    return Instance(profile, hardware.kv_tokens, hardware.usd_per_hour)


def read(kind: type[T], values: Mapping[str, Any]) -> T:
    """Plain values as an object of a configuration class.

    Parameters
    ----------
    kind : a dataclass; its fields may be dataclasses and unions of them.
    values : field -> plain value, as composed from conf/.

    Returns
    -------
    The object, with every value converted to the type of its field.

    Raises
    ------
    ValueError
        One line with the key, at the first value that is missing, unknown or of a wrong type, or that the class refuses.
    """
    try:
        key: Any = kind  # a type variable has no hash for mypy
        made: T = _adapter(key).validate_python(dict(values))
        return made
    except ValidationError as error:
        raise ValueError(_first_line(error, values)) from None


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Cached, because making an adapter takes 10 ms and using it 0.1 ms, and a sweep reads thousands of configurations."""
    return TypeAdapter(kind)


# Type of pydantic's error, from its beginning -> what is needed, in words.
NEEDED = {
    "int": "a whole number is needed",
    "float": "a number is needed",
    "finite": "a finite number is needed",
    "bool": "true or false is needed",
    "string": "a text is needed",
    "path": "a path is needed",
    "tuple": "a list such as [1,2] is needed",
    "list": "a list such as [a,b] is needed",
    "dict": "keys of its own are needed, such as {key}.NAME=VALUE",
    "dataclass": "keys of its own are needed, such as {key}.NAME=VALUE",
    "literal": "it must be {expected}",
}


def _first_line(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first error, such as `cluster.prefill is 'two'; a whole number is needed`.

    A policy's fields may be computed from other keys, so errors of those keys come first. So may a seed, which is a key of the verb's too.
    """
    first = min(error.errors(), key=lambda each: isinstance(each["input"], dict) and "_target_" in each["input"])
    key = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper())  # without the class of a union
    match first["type"]:
        case "value_error":
            wrong = first["ctx"]["error"]
            if isinstance(wrong, OutOfRange) and not (str(wrong).startswith("seed is ") and f"seed is {values.get('seed')};" in str(wrong)):
                return str(wrong.under(key)) if key else str(wrong)
            return f"{key}: {wrong}" if key and not isinstance(wrong, OutOfRange) else str(wrong)
        case "missing":
            return f"{key} must be given: {key}=VALUE"
        case "unexpected_keyword_argument":
            return f"{key} is not a key that this verb has"
    expected = str(first.get("ctx", {}).get("expected", "")).replace("'", "")
    needed = next((words for kind, words in NEEDED.items() if first["type"].startswith(kind)), first["msg"])
    return f"{key} is {short(first['input'])}; {needed.format(key=key, expected=expected)}"
