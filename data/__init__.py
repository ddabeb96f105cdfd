"""Videos and latents on disk, and how training reads them.

`training` is what a training run takes, `verify` checks what is stored. May import `common` and
`engine`.
"""
