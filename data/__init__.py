"""Videos and latents on disk, and how training reads them.

`verify` checks what is stored. May import `common` and `engine`.
"""
