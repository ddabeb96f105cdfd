"""Latte, a latent diffusion transformer for video: model, diffusion, samplers, converters.

May import `common` and `engine`.
"""

from latte.config import LatteConfig
from latte.model import Latte

__all__ = ["Latte", "LatteConfig"]
