"""Networks that turn clips into features or probabilities, their weights, and the feature cache.

May import `common`, `data`, `eval.clips` and `eval.metrics`.
"""
