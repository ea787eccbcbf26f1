"""The report's figures: a module each, `draw(study)` gives the figure, its docstring the caption."""
