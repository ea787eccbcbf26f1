"""What the speed of a codec decides: the link rate above which compressed KV is usable later than raw KV, if encoding, sending and
expanding follow one another.

    break-even rate = bytes saved / (seconds of encoding + seconds of expanding)
"As measured" takes the speeds of KVServe's codecs (MIT) that conf/hardware has for the GPU. The other rows assume a codec that copies at a
share of the memory bandwidth: 60 % is what conf/hardware assumes without a measurement, 10 % and 1 % are what codecs with more passes
reach. The model is Llama-3.1-8B, one GPU on each side.

Not modelled: stages that overlap (layer by layer the slowest stage decides, and the rate is about twice as high), other work on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from abkt.profile.roofline import GpuSpec, codec_fits, with_codec_efficiency
from abkt.spec import ModelSpec

EFFICIENCIES = (0.01, 0.10, 0.60)
TOKENS = (1024, 8192, 32768)
MODES = {"4": 4.25 / 16, "lossless": 12 / 16}  # stage -> bytes of coded KV over raw


def break_even_gbps(gpu: GpuSpec, model: ModelSpec, stage: str, tokens: int) -> float:
    """Gbit/s at which the codec gains nothing."""
    fits = codec_fits(gpu, model, MODES["lossless"])
    seconds = sum(fits[f"{side}/{stage}"].seconds(tokens=tokens) for side in ("encode", "expand"))
    return 8 * model.kv_bytes(tokens) * (1 - MODES[stage]) / seconds / 1e9


def as_markdown(gpus: Sequence[GpuSpec], model: ModelSpec) -> str:
    """One row for each GPU and codec speed."""
    heads = [f"{'4 bits' if stage == '4' else stage}, {tokens:,} tokens" for stage in MODES for tokens in TOKENS]
    lines = [f"| GPU | codec | {' | '.join(heads)} |", "|---|---" + "|---" * len(heads) + "|"]
    for gpu in gpus:
        speeds = [(f"{share:.0%} of memory bandwidth", with_codec_efficiency(gpu, share)) for share in EFFICIENCIES]
        if gpu.codecs:
            speeds.insert(0, ("as measured", gpu))
        for name, one in speeds:
            rates = [f"{break_even_gbps(one, model, stage, tokens):,.0f}" for stage in MODES for tokens in TOKENS]
            lines.append(f"| {gpu.name} | {name} | {' | '.join(rates)} |")
    return "\n".join([*lines, "", "Gbit/s. A slower link favours the codec."])
