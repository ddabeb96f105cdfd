"""What results on disk say, as sections of the page, tables, LaTeX and figures.

May import `common`, `data.video`, `engine.run_folder`, and of `eval` `clips`, `published`, `report`
and the results of `protocols.measurement`.
"""
