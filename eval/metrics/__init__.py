"""Metrics on arrays alone: distances of feature sets, Inception Score, PSNR and SSIM, baselines.

May import `common` and the range checks of `eval.features.preprocess`.
"""
