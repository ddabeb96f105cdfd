"""How clips and networks become one published score: FVD, IS, reconstruction, cost, held-out clips.

May import `common`, `data` and the other folders of `eval` except `eval.report`'s pages.
"""
