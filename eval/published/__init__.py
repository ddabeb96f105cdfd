"""What others publish: the protocols of scores, and the scores, each with its source.

May import `common` and `eval.report.items`.
"""
