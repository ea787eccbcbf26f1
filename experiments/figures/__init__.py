"""The figures of docs/results.md, one file each, drawn from the stored tables of data/figures by `make figures`.

The report of a study and the notebooks also use style and stored.
"""
