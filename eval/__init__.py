"""Measures videos and reconstructions: metrics, networks, clips, protocols and the report page.

May import `common`, `data` and `engine`, never `vae` or `latte`: models come in as functions.
"""
