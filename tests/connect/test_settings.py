"""What the extra configuration and an ask may say; everything else is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from abkt.connect.vllm.ask import Ask, new_number
from abkt.connect.vllm.settings import BITRATES, Settings
from abkt.connect.vllm.worker import rope_theta_of
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.fixed import Fixed, Raw
from abkt.transfer.protocol.messages import Offer


def test_bitrates_are_policies() -> None:
    assert isinstance(Settings.of({"bitrate": "raw"}).policy(), Raw)
    assert Settings.of({"bitrate": "int4"}).policy() == Fixed(4)
    embedded = Settings.of({"bitrate": "embedded", "target_distortion": 0.001, "link_mbit_s": 80}).policy()
    assert isinstance(embedded, Embedded)
    assert (embedded.target_distortion, embedded.max_distortion, embedded.link.initial_bytes_per_s) == (0.001, 0.008, 1e7)
    assert Settings.of({"bitrate": {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 2}}).policy() == Fixed(2)
    assert {name for name in BITRATES if not Settings.of({"bitrate": name}).lossy} == {"raw", "lossless"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"bitrat": "raw"}, "has no bitrat; it may have bitrate, target_distortion"),
        ({"bitrate": "int5"}, "bitrate is 'int5'; it must be one of embedded, int8"),
        ({"bitrate": 4}, "bitrate is 4"),
        ({"target_distortion": -1}, "target_distortion is -1; it must be above 0"),
        ({"target_distortion": "low"}, "target_distortion is 'low'"),
        ({"lease_s": True}, "lease_s is True"),
        ({"share_lossy": 1}, "share_lossy is 1"),
        ({"port": 99999}, "port is 99999"),
        ({"coder": "zip"}, "coder is 'zip'; it must be one of fixed, entropy"),
        ({"calibration": "/nowhere"}, "calibration /nowhere does not exist"),
        ({"bitrate": {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 5}}, "bits is 5"),
    ],
)
def test_wrong_settings_are_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        Settings.of(given)
    assert "\n" not in str(caught.value)


def test_an_ask_survives_its_offer() -> None:
    ask = Ask("fetch", "cmpl-1", new_number(), "127.0.0.1:7", 32, 150)
    assert Ask.of(ask.outgoing().offer) == ask
    assert Ask.of(Offer(1, "raw", 5, (9,))) is None


@pytest.mark.parametrize(
    "change",
    [{"ask": "steal"}, {"tokens": 32}, {"first_token": -1}, {"number": 1 << 62}, {"request_id": "x" * 513}, {"tokens": "5"}, {"more": 1}],
)
def test_a_malformed_ask_is_one_line(change: dict[str, Any]) -> None:
    more = {**Ask("fetch", "cmpl-1", 5, "127.0.0.1:7", 32, 150).outgoing().offer.more, **change}
    with pytest.raises(ValueError, match="ask"):
        Ask.of(Offer(1, "raw", 0, (1,), more=more))


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({"rope_theta": 1e5}, 1e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "yarn"}}, None),
        ({}, None),
    ],
)
def test_the_rotary_base_is_read_only_where_it_is_plain(config: dict[str, Any], theta: float | None) -> None:
    assert rope_theta_of(config) == theta


def test_the_key_and_calibration_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration"):
        Settings.of({"calibration": str(tmp_path / "none.json")})
