# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. The codec
#
# The codec codes KV once into an *embedded stream*: passes in the order of distortion removed per byte. Any prefix that ends at a cut can
# be decoded, so the bitrate is a cut that can still move. This notebook uses real KV of the probe model on held-out text.

# %%
# %matplotlib inline
import pandas as pd
from matplotlib import pyplot as plt

from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from experiments.notebook import figure, sample_kv

pool, table, tokens = sample_kv()
codec = Codec(pool.layout)
stream = codec.encode(pool, table, tokens)
raw_bytes = tokens * pool.layout.model.kv_bytes_per_token
print(f"{tokens} tokens, {raw_bytes:,} bytes raw, {stream.slope.bytes[-1]:,.0f} at full depth, {stream.slope.finest + 1} cuts")
print(codec.describe())

# %% [markdown]
# Every policy sees this curve: bytes and distortion of each cut. One order sorts passes by slope; the other treats all cells alike.

# %%
picture, axes = plt.subplots(figsize=(6, 3))
for name, curve in (("by slope", stream.slope), ("all cells alike", stream.uniform)):
    axes.plot([size / raw_bytes for size in curve.bytes], curve.distortion, marker=".", label=name)
axes.set(xlabel="bytes, of the raw ones", ylabel="distortion", yscale="log")
_ = axes.legend()

# %% [markdown]
# A prefix is a stream of its own. Cut the stream at four places, expand each prefix into another pool, and compare the distortion that the
# stream promised with the one that is found.

# %%
rows = []
for bits in (1, 2, 4, 8):
    cut = stream.slope.cut_of_bits(bits)
    other = Pool(pool.layout)
    found = codec.expand(stream.prefix(cut), other, table)
    (keys, values), (got_keys, got_values) = pool.read(table, 0, tokens), other.read(table, 0, tokens)
    error = float((keys.float() - got_keys.float()).square().mean() / keys.float().var())
    rows.append(
        {
            "bits": bits,
            "of raw": stream.slope.bytes[cut] / raw_bytes,
            "promised": stream.slope.distortion[cut],
            "expanded": found.distortion,
            "keys of layer 0, error by variance": error,
        }
    )
pd.DataFrame(rows).round(5)

# %% [markdown]
# Distortion is not quality. `abkt quality` measures what a bit costs *on a model*. This is its stored result for the probe, a model of 5 M
# parameters; the savings do not transfer to SmolLM2-135M (`docs/quality.md`).

# %%
figure("fig01_rate_distortion")
