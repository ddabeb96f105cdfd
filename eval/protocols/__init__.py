"""How clips and networks become one score: FVD, IS, reconstruction, cost, scores while training.

May import `common`, `data`, `engine`, and of `eval` `clips`, `features`, `metrics`, `published`.
"""
