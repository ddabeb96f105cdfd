"""Training clips: which frames and crops, in which order, loaded by which process.

May import `common`, `engine`, `data.video` and `data.shards`.
"""
