"""Tables, drawings and the self-contained web page, from plain data.

May import `common` and `data.video`.
"""
