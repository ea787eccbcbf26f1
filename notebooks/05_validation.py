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
# # 5. Can the simulator be trusted?
#
# `abkt validate` calibrates the simulator on some runs and lets it predict others. Then it runs those on real processes and writes
# VALIDATION.md. This notebook reads a stored validation: 1P1D of the probe on two cores, three conditions, four policies, two repeats each.
# It was measured before the simulated twin reserved decode memory as the real frontend does (`docs/limits.md`).

# %%
# %matplotlib inline
from experiments.figures.stored import load
from experiments.lib.paths import data_path
from experiments.notebook import figure
from experiments.validation.scores import by_stage

stored = load(data_path("figures"), "validation")
stored.stamp["command"], stored.stamp["host"]

# %%
figure("fig05_validation")

# %% [markdown]
# Each error stands beside the noise of the machine itself: how far one repeat lies from the other. A simulator cannot be better than that,
# and an error within the noise says little about the simulator.

# %%
stages = by_stage(stored.rows)
stages[stages.cases > 0].set_index(["quantile", "stage"])[["measured_s", "error", "bias", "worst", "noise"]].round(3)

# %% [markdown]
# What counts in the end is the decision: does the simulator pick the policy that is best on the machine? The *regret* is the goodput lost
# on the machine by following the simulator. It counts only where the machine can tell the two policies apart.

# %%
means = stored.rows[(stored.rows.stage == "ttft") & (stored.rows["quantile"] == "mean")]
means.pivot_table(index="condition", columns="policy", values=["measured_s", "predicted_s"]).round(2)
