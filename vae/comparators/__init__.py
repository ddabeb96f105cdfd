"""The VAEs that the paper compares with, behind the interface of `vae.VideoVAE`."""
