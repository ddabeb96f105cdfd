"""Experiments of several commands over seeds: ablation, chain, learning curve.

May import `common`, `data.video`, `engine.run_folder`, `eval.report` and `eval.results`.
"""
