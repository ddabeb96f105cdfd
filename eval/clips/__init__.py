"""Which frames of which videos are evaluated, where they lie, and what they show.

May import `common` and `data`.
"""
