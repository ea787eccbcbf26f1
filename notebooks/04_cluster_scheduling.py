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

from experiments.lib.notebook import figure, sweep

BASE = ("workload=poisson", "workload.requests=300", "workload.isl=6000", "workload.osl=200", "workload.variation=1.0", "slo=interactive")

# %%
routed = sweep(["routing=random,round_robin,least_loaded,load_aware", "workload.rate_per_s=8,16,24"], *BASE)
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
HEAVY = ("workload=poisson", "workload.requests=200", "workload.isl=8000", "workload.osl=500", "workload.rate_per_s=20", "slo=interactive")
roles = sweep(["roles=static,arrow,load_aware"], *HEAVY).set_index("roles")
roles[["goodput_per_s", "ttft_s.mean", "tpot_s.mean", "e2e_s.mean"]].round(3)

# %%
picture, axes = plt.subplots(figsize=(6, 2.2))
axes.barh(roles.index, roles["e2e_s.mean"])
axes.set_xlabel("mean end-to-end time (s)")
_ = axes.invert_yaxis()
