"""Tables, figures and the self-contained web page, from results that were measured elsewhere.

May import `common`, `data`, `engine.run_folder`, `eval.clips` and `eval.protocols`.
"""
