"""Training alone: the loop, optimization, checkpoints, memory of a step, FSDP.

May import `common`.
"""
