"""What results on disk say, as sections of the page, tables, LaTeX and figures.

May import `common`, `data.video`, `engine.run_folder`, `eval.clips`, `eval.published`
and `eval.report`.
"""
