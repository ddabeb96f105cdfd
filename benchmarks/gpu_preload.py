"""What the commands import, for the process that they are forked from."""

import tensorboard  # noqa: F401

import scripts.cache_latents
import scripts.eval_fvd
import scripts.make_shards
import scripts.sample
import scripts.train_classifier
import scripts.train_latte
import scripts.train_vae  # noqa: F401
