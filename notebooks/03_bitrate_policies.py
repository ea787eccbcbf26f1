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
# # 3. Bitrate policies
#
# A bitrate policy sees the curve of a transfer, the deadline, and its own estimate of the link. It says where to cut. The same objects
# decide on real processes and in the simulator. Here the link loses nine tenths of its bandwidth from 15 s to 30 s of every minute.

# %%
# %matplotlib inline
import pandas as pd
from matplotlib import pyplot as plt

import abkt
from experiments.notebook import figure

LINK = {"network": "mid_drop", "network__gbps": 10, "slo": "interactive"}
LOAD = {"workload": "poisson", "workload__requests": 120, "workload__rate_per_s": 1.5, "workload__isl": 8000, "workload__osl": 100}
POLICIES = ("raw", "int4", "cachegen", "kvserve", "state_machine", "embedded", "fleet")
runs = {name: abkt.simulate(bitrate=name, **LINK, **LOAD) for name in POLICIES}

# %%
table = pd.DataFrame(
    {
        name: {
            "within SLO": run.summary["good_share"],
            "mean TTFT (s)": run.summary["ttft_s"]["mean"],
            "p99 TTFT (s)": run.summary["ttft_s"]["p99"],
            "mean distortion": run.summary["distortion"]["mean"],
            "p99 distortion": run.summary["distortion"]["p99"],
        }
        for name, run in runs.items()
    }
).T.round(4)
table

# %% [markdown]
# A fair comparison bounds distortion (mean at most D, p99 at most 8 D) and then compares goodput. Without the bound the lowest rate always
# wins, and the comparison says nothing. `abkt adaptation` compares within bounds and gives intervals. What did each policy send, and when?

# %%
picture, (bits, wait) = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True)
for name in ("int4", "cachegen", "embedded"):
    sent = runs[name].transfers.sort_values("start_s")
    bits.plot(sent.start_s, sent.bits_per_value, marker=".", label=name)
    wait.plot(sent.start_s, sent.finish_s - sent.start_s, marker=".")
for axes in (bits, wait):
    for start_s in range(15, int(sent.finish_s.max()), 60):
        axes.axvspan(start_s, start_s + 15, color="#EEEEEE")
bits.set(ylabel="bits per value")
bits.legend(ncols=3)
_ = wait.set(ylabel="transfer (s)", xlabel="time (s)", yscale="log")

# %% [markdown]
# Compression does not always help. On a fast link, coding takes more time than it saves. For a serial codec the break-even bandwidth is
# (1 − 1/r) S, where r is the ratio of raw to wire bytes and S the speed of encoding and expanding together.

# %%
figure("fig02_bandwidth")
