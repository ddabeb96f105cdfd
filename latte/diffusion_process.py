"""The process that a model learns to reverse: diffusion or flow."""

from latte.diffusion import DiffusionConfig, GaussianDiffusion
from latte.flow import FlowConfig, RectifiedFlow

DiffusionProcess = GaussianDiffusion | RectifiedFlow
"""Both give times and losses of training, and the prediction of a model that knows the data."""


def make_process(diffusion: DiffusionConfig, flow: FlowConfig | None) -> DiffusionProcess:
    """The flow, if there is one, else the diffusion.

    Raises:
        ValueError: a flow beside options of diffusion, which it would ignore.
    """
    if flow is None:
        return GaussianDiffusion(diffusion)
    if diffusion != DiffusionConfig():
        raise ValueError(
            "flow replaces diffusion, whose options would have no effect: leave them out, or set "
            "flow to null"
        )
    return RectifiedFlow(flow)
