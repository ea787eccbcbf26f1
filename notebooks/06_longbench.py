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
# # 6. LongBench
#
# Distortion and likelihood are only proxies. Are the answers still right? `abkt longbench` asks a model LongBench's questions after its KV
# has gone through codec and transfer. It asks the same model with raw KV and without a transfer too. It runs any Hugging Face causal LM
# whose attention `abkt.serve` computes, and the data come from a folder or from the hub. This notebook shows its parts.

# %%
# %matplotlib inline
import pandas as pd

from experiments.longbench import metrics
from experiments.notebook import figure

# %% [markdown]
# **Scoring** follows the published protocol: F1 of words, ROUGE-L, exact labels, counts, retrieved paragraphs.

# %%
examples = [
    (metrics.qa_f1, "The capital is Paris", "Paris", ()),
    (metrics.qa_f1, "I do not know", "Paris", ()),
    (metrics.classification, "a question about a city", "city", ("city", "country")),
    (metrics.retrieval, "It is in Paragraph 7", "Paragraph 7", ()),
    (metrics.count, "There are 12 of them, or 13", "12", ()),
]
scored = [(metric.__name__, said, right, metric(said, right, classes)) for metric, said, right, classes in examples]
pd.DataFrame(scored, columns=["metric", "said", "right", "score"])

# %% [markdown]
# **What to expect.** As bits get fewer, a model loses its answers about key-value lines much sooner than its likelihood of plain text. So
# the recall panel (left) is the stricter one. On the probe, a codec that treats all heads alike fails there first.

# %%
figure("fig01_rate_distortion")

# %% [markdown]
# **Run it** on a model of your own, with the embedded stream and ten questions for each task:
#
# ```bash
# abkt longbench model_folder=FOLDER_OR_HUB_NAME data=FOLDER_OR_hub samples=10 bitrate=embedded out=DIR
# ```
#
# It resumes where it was stopped. `docs/quality.md` has results by task, with intervals.
