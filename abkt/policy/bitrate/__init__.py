"""Bitrate policies, one file each. A policy decides how each KV transfer is sent. Configurations name policies by class (conf/bitrate); a
new policy is one file here and one YAML file there. The policies of others are in `published`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.lazy import exporter

if TYPE_CHECKING:
    from abkt.policy.bitrate.allocated import Allocated
    from abkt.policy.bitrate.bounded import Bounded
    from abkt.policy.bitrate.coded import Coded
    from abkt.policy.bitrate.embedded import Embedded, EmbeddedBits
    from abkt.policy.bitrate.equal import Equal
    from abkt.policy.bitrate.fixed import Fixed, Raw
    from abkt.policy.bitrate.fleet import Fleet
    from abkt.policy.bitrate.lossless import Lossless
    from abkt.policy.bitrate.off import Off
    from abkt.policy.bitrate.oracle_bandwidth import OracleBandwidth
    from abkt.policy.bitrate.oracle_profile import OracleProfile
    from abkt.policy.bitrate.published.cachegen import CacheGen
    from abkt.policy.bitrate.published.kvserve import KVServe
    from abkt.policy.bitrate.published.lynx import Lynx
    from abkt.policy.bitrate.published.spectrum import Spectrum
    from abkt.policy.bitrate.published.state_machine import StateMachine
    from abkt.policy.bitrate.random import RandomBitrate

__all__ = [
    "Allocated",
    "Bounded",
    "CacheGen",
    "Coded",
    "Embedded",
    "EmbeddedBits",
    "Equal",
    "Fixed",
    "Fleet",
    "KVServe",
    "Lossless",
    "Lynx",
    "Off",
    "OracleBandwidth",
    "OracleProfile",
    "RandomBitrate",
    "Raw",
    "Spectrum",
    "StateMachine",
]
__getattr__ = exporter(
    __name__,
    {
        "Allocated": "allocated",
        "Bounded": "bounded",
        "CacheGen": "published.cachegen",
        "Coded": "coded",
        "Embedded": "embedded",
        "EmbeddedBits": "embedded",
        "Equal": "equal",
        "Fixed": "fixed",
        "Fleet": "fleet",
        "KVServe": "published.kvserve",
        "Lossless": "lossless",
        "Lynx": "published.lynx",
        "Off": "off",
        "OracleBandwidth": "oracle_bandwidth",
        "OracleProfile": "oracle_profile",
        "RandomBitrate": "random",
        "Raw": "fixed",
        "Spectrum": "published.spectrum",
        "StateMachine": "published.state_machine",
    },
)
