"""Videos and latents on disk, and how training reads them.

`pool` works on files in processes, `verify` checks what is stored. May import `common` and
`engine`.
"""
