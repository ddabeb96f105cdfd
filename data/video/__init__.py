"""One video: probing, exact decoding, encoding, resizing, and what can go wrong with a file.

May import `common`.
"""
