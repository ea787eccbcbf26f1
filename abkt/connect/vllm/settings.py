"""What `kv_connector_extra_config` may say, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from abkt.policy.build import build
from abkt.policy.view import BitratePolicy, CoderName
from abkt.ranges import bound, short

FIXED = {"int8": 8, "int4": 4, "int2": 2}
EXACT = ("lossless", "raw")
BITRATES = ("embedded", *FIXED, *EXACT)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one server.

    Parameters
    ----------
    bitrate : embedded, int8, int4, int2, lossless or raw; or the fields of a policy, with its class as `_target_` (abkt.policy.build).
    target_distortion : of embedded: the distortion to reach by the deadline. The mean over a peer's transfers may be twice, and that of a
        single transfer eight times as high; after the start KV is refined to a quarter of it.
    refine : whether embedded streams are refined after the start.
    deadline_s : of embedded: how long after the ask KV should be usable; a slow link gets a coarser cut.
    link_mbit_s : the first estimate of a link.
    coder : the codec's coder.
    calibration : file of the codec's calibration.
    key_file, encrypt : the pre-shared key of all servers, and whether KV is encrypted or only authenticated.
    host, port : where this server's workers listen, as their peers see it; worker r takes port + r. Port 0: free ones.
    model_name : what both sides call the model; empty: the last part of the model's path.
    lease_s : how long prefilled KV waits to be fetched.
    memory_gib : host memory for prefilled KV that waits.
    timeout_s : how long a decode server waits for the first byte.
    share_lossy : publish blocks with lossy KV to the prefix cache. They are not refined then.
    kv_cache_layout : the memory layout to ask vLLM for, such as BLHNC; empty: vLLM's choice.
    trace : file that workers append to what they did and when (trace.py); worker r > 0 adds .r to its name. Empty: none.

    Raises
    ------
    ValueError : one line, for a value out of range, or a file that cannot be read.
    """

    bitrate: str | Mapping[str, Any] = "embedded"
    target_distortion: float = 0.002
    refine: bool = True
    deadline_s: float = 1.0
    link_mbit_s: float = 1000.0
    coder: str = "fixed"
    calibration: str = ""
    key_file: str = ""
    encrypt: bool = False
    host: str = "127.0.0.1"
    port: int = 0
    model_name: str = ""
    lease_s: float = 60.0
    memory_gib: float = 2.0
    timeout_s: float = 30.0
    share_lossy: bool = False
    kv_cache_layout: str = ""
    trace: str = ""
    _policy: Mapping[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bound(self, "target_distortion", "link_mbit_s", "lease_s", "memory_gib", "timeout_s", above=0)
        bound(self, "deadline_s", least=0, infinite=True)
        bound(self, "port", least=0, most=65_535)
        if self.coder not in get_args(CoderName):
            raise ValueError(f"coder is {short(self.coder)}; it must be one of {', '.join(get_args(CoderName))}")
        if self.calibration and not Path(self.calibration).is_file():
            raise ValueError(f"calibration {self.calibration} does not exist")
        object.__setattr__(self, "_policy", self._policy_fields())
        self.policy()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """The settings in a server's extra configuration. Raises ValueError, one line, for an unknown key or a value of a wrong type."""
        known = {each.name: each for each in fields(cls) if each.init}
        for key, value in given.items():
            if key not in known:
                raise ValueError(f"kv_connector_extra_config has no {key}; it may have {', '.join(known)}")
            default = known[key].default
            kinds = (int, float) if isinstance(default, float) else (type(default),)
            if key == "bitrate":
                kinds = (str, Mapping)  # type: ignore[assignment]
            if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
                raise ValueError(f"kv_connector_extra_config: {key} is {short(value)}; like {default!r} it must be")
        return cls(**given)

    def policy(self) -> BitratePolicy:
        """A new bitrate policy, for one peer."""
        made: BitratePolicy = build(self._policy)
        return made

    def with_bitrate(self, bitrate: str) -> Settings:
        """These settings with another bitrate; empty: the same."""
        return replace(self, bitrate=bitrate) if bitrate else self

    @property
    def lossy(self) -> bool:
        """Whether KV may travel in less than full precision."""
        return self.bitrate not in EXACT

    @property
    def depth_bits(self) -> int:
        """The bits per value that KV is coded with before any peer has asked for it; 0: it is not coded then."""
        if not self.lossy:
            return 0
        return FIXED.get(self.bitrate, 8) if isinstance(self.bitrate, str) else 8

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    def _policy_fields(self) -> Mapping[str, Any]:
        if isinstance(self.bitrate, Mapping):
            return self.bitrate
        if self.bitrate not in BITRATES:
            raise ValueError(f"bitrate is {short(self.bitrate)}; it must be one of {', '.join(BITRATES)}, or the fields of a policy")
        if self.bitrate in FIXED:
            return {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": FIXED[self.bitrate], "coder": self.coder}
        if self.bitrate != "embedded":
            return {"_target_": f"abkt.policy.bitrate.{LOSSLESS_CLASSES[self.bitrate]}"}
        link = {"_target_": "abkt.policy.bandwidth.Bandwidth", "initial_bytes_per_s": self.link_mbit_s * 1e6 / 8, "stale_s": 60.0}
        target = self.target_distortion
        return {
            "_target_": "abkt.policy.bitrate.embedded.Embedded",
            "target_distortion": target,
            "mean_distortion": 2 * target,
            "max_distortion": 8 * target,
            "refine_distortion": target / 4 if self.refine else math.inf,
            "link": link,
        }


LOSSLESS_CLASSES = {"raw": "fixed.Raw", "lossless": "lossless.Lossless"}
