"""The report of a run: tables and plots as one self-contained HTML page, and the same tables on the terminal.

`page.py` has the page and writes it with `base.html.j2`; `parts.html.j2` has the macros that templates of other rooms share; `words.py`
says numbers, dates and links in words; `terminal.py` prints the tables and the verdict, which is defined in `verdict.py`.
"""
