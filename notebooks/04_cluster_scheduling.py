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
# # 4. Cluster scheduling
#
# Routing decides which pair of nodes gets a request. Roles decide which node prefills and which decodes. Both are policies as well; their
# choices are in `conf/routing` and `conf/roles`. Everything here is simulated.

# %%
# %matplotlib inline
from matplotlib import pyplot as plt

import abkt
from experiments.notebook import figure

LOAD = {"workload": "poisson", "workload__requests": 300, "workload__isl": 6000, "workload__osl": 200, "workload__variation": 1.0}

# %%
ROUTING = ["random", "round_robin", "least_loaded", "load_aware"]
routed = abkt.sweep(routing=ROUTING, workload__rate_per_s=[8, 16, 24], slo="interactive", **LOAD)
routed.pivot_table(index="workload.rate_per_s", columns="routing", values="ttft_s.p99").round(2)

# %% [markdown]
# Requests differ in length. A policy that counts requests (round robin) does worse than one that counts seconds. A longer sweep, with
# seeds:

# %%
figure("fig04_routing")

# %% [markdown]
# Roles: with long prompts and long answers both sides become overloaded, but not at the same time. `load_aware` lends nodes from one side
# to the other.

# %%
HEAVY = {"workload": "poisson", "workload__requests": 200, "workload__isl": 8000, "workload__osl": 500, "workload__rate_per_s": 20}
roles = abkt.sweep(roles=["static", "arrow", "load_aware"], slo="interactive", **HEAVY).set_index("roles")
roles[["goodput_per_s", "ttft_s.mean", "tpot_s.mean", "e2e_s.mean"]].round(3)

# %%
picture, axes = plt.subplots(figsize=(6, 2.2))
axes.barh(roles.index, roles["e2e_s.mean"])
axes.set_xlabel("mean end-to-end time (s)")
_ = axes.invert_yaxis()
