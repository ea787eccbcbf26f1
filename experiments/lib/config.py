"""Plain values from conf/ as frozen dataclasses, checked when they are read, so that other code gets no untyped dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

from abkt.profile import schema
from abkt.profile.roofline import GpuSpec, kv_tokens, profile_of
from abkt.profile.schema import Profile
from abkt.spec import ModelSpec
from experiments.lib.curves import load_curves

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid")  # for every verb's configuration class and the classes in it


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """prefill, decode: number of instances of each role. max_batch: most requests in one decode iteration."""

    prefill: int
    decode: int
    max_batch: int

    def __post_init__(self) -> None:
        if min(self.prefill, self.decode, self.max_batch) < 1:
            raise ValueError("prefill, decode and max_batch must be at least 1")


@dataclass(frozen=True, slots=True)
class MeasuredHardware:
    """A machine that `abkt profile` measured. profile: its profile.json. kv_tokens: tokens of KV that one instance holds."""

    profile: Path
    kv_tokens: int
    usd_per_hour: float = 0.0

    def __post_init__(self) -> None:
        if self.kv_tokens < 1:
            raise ValueError(f"kv_tokens is {self.kv_tokens}; it must be at least 1")


Hardware = Annotated[
    Annotated[GpuSpec, Tag("GpuSpec")] | Annotated[MeasuredHardware, Tag("MeasuredHardware")],
    Discriminator(lambda value: kind_of(value, "profile", "MeasuredHardware", "GpuSpec")),
]


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
        raise ValueError(_first_line(error)) from None


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Cached, because making an adapter takes 10 ms and using it 0.1 ms, and a sweep reads thousands of configurations."""
    return TypeAdapter(kind)


def _first_line(error: ValidationError) -> str:
    """The first error, such as `cluster.prefill is 'two'; a valid integer is needed`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper())  # without the class of a union
    match first["type"]:
        case "value_error":
            return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        case "missing":
            return f"{key} must be given: {key}=VALUE"
        case "unexpected_keyword_argument":
            return f"{key} is not a key that this verb has"
    needed = first["msg"].removeprefix("Input should be ").split(", ")[0]
    return f"{key} is {first['input']!r}; {needed} is needed"
