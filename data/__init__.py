"""Videos and latents on disk, and how training reads them.

May import `common` and the config of `engine`.
"""
