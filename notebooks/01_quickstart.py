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
# # 1. Quickstart
#
# A prefill node computes the KV cache of a request. The cache crosses a network, and another node decodes from it. How many bits of it
# should cross? This notebook asks the simulator. The cluster has four prefill and four decode H100s, the requests are the first 300 of
# Mooncake's conversation trace, and three bitrate policies are compared. On a command line this is
# `abkt simulate -m bitrate=raw,int4,embedded network=5g workload.scaling.requests=300`.

# %%
# %matplotlib inline
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

import abkt

# %%
policies = ("raw", "int4", "embedded")
runs = {name: abkt.simulate(bitrate=name, network="5g", workload__scaling__requests=300) for name in policies}
pd.DataFrame(
    {
        name: {
            "mean TTFT (s)": run.summary["ttft_s"]["mean"],
            "p99 TTFT (s)": run.summary["ttft_s"]["p99"],
            "within SLO": run.summary["good_share"],
            "of the raw bytes": run.summary["wire_bytes"] / run.summary["raw_bytes"],
            "mean distortion": run.summary["distortion"]["mean"],
        }
        for name, run in runs.items()
    }
).T.round(4)

# %% [markdown]
# Fewer bytes give an earlier first token and some distortion. `embedded` spends its bytes where they remove most distortion, so it sends
# fewer bytes than `int4` and loses less. Where does the time of a request go?

# %%
stages = ["queue", "prefill", "encode", "wire", "expand"]
exposed = pd.DataFrame({name: run.requests[[f"{s}_exposed_s" for s in stages]].mean() for name, run in runs.items()}).T
exposed.columns = stages
axes = exposed.plot.barh(stacked=True, figsize=(7, 2.2))
axes.set_xlabel("mean seconds that the request waits for the stage alone")
_ = axes.invert_yaxis()

# %%
figure, axes = plt.subplots(figsize=(7, 3))
for name, run in runs.items():
    seconds = np.sort(run.requests.ttft_s)
    axes.step(seconds, np.arange(1, len(seconds) + 1) / len(seconds), label=name)
axes.set(xscale="log", xlabel="time to first token (s)", ylabel="share of requests")
_ = axes.legend()

# %% [markdown]
# None of this is validated on H100s: the costs come from published kernel tables and a data sheet. `05_validation` says how far the
# simulator can be trusted where it could be checked. Next: what the codec does (`02_codec`), and how policies decide
# (`03_bitrate_policies`).
