"""The figures of a study's report, one file each. Each has `draw(study)`; experiments.study.report calls it."""
