"""The latent cache: written once, resumable, read as samples or means.

May import `common`, `engine` and the other folders of `data`.
"""
