"""webdataset shards of videos: packing, index, reading elsewhere's and remote ones, checks.

May import `common`, `data.video` and `data.importers`.
"""
