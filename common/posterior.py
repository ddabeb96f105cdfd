"""What the VAE and the latent cache both know of a posterior."""

LOGVAR_RANGE = (-30.0, 20.0)
"""Where log-variances are clamped, so that exp cannot overflow."""
