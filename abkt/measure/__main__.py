"""`python -m abkt.measure device=cuda out=DIR …`: measure a device for the simulator. Needs only torch, triton and numpy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from abkt.arguments import read
from abkt.measure.shape import DecoderShape

BAD_INPUT = 2


@dataclass(frozen=True, slots=True)
class DeviceArguments(DecoderShape):
    """The arguments: the fields of DecoderShape (the model's shape), and the settings of the measurement.

    device: cpu or cuda. out: folder for profile.json. tokens: length of the longest prompt; 0: 512 on a CPU, 8,192 on a GPU. repeats:
    number of timed rounds; the result is their median.
    """

    device: str = "cuda"
    out: Path = Path("outputs/profile")
    tokens: int = 0
    repeats: int = 7

    def __post_init__(self) -> None:
        DecoderShape.__post_init__(self)
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device}: it must be one of cpu, cuda")
        if (self.tokens and self.tokens < 128) or self.repeats < 1:
            raise ValueError("tokens must be at least 128, repeats at least 1")


def run(given: Sequence[str]) -> None:
    """Measure a device and write its profile. Raises ValueError, one line, for bad input."""
    arguments = read(DeviceArguments, given)
    import torch

    from abkt.measure.device import measure

    longest = arguments.tokens or (8192 if arguments.device == "cuda" else 512)
    device = torch.device(arguments.device)
    profile = measure(arguments, device, longest, arguments.repeats, lambda name: print(f"{name} ...", file=sys.stderr))
    arguments.out.mkdir(parents=True, exist_ok=True)
    profile.save(arguments.out / "profile.json")
    print("\n".join(f"{name}: {value}" for name, value in profile.fingerprint.items()))
    for stage, fit in sorted(profile.fits.items()):
        terms = " + ".join(f"{c:.3g} {f}" if f != "1" else f"{c:.3g}" for f, c in fit.by_feature.items() if c) or "0"
        print(f"{stage:<12} seconds = {terms}   (residual {fit.residual:.1%}, {fit.samples} samples)")
    print(f"profile: {arguments.out / 'profile.json'}")


def main() -> None:
    try:
        run(sys.argv[1:])
    except ValueError as error:
        print(f"abkt.measure: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
