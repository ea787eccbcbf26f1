"""The figures of docs/results.md, one file each, drawn from the stored tables of data/figures by `make figures`.

style and stored also serve the report of a study and the notebooks.
"""
