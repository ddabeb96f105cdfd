"""How many images of joint training each clip of a batch carries, and what they weigh."""

import torch
from jaxtyping import Float
from torch import Tensor


class JointBatch:
    """A global batch of clips among which a number of images is spread evenly.

    All rows of a batch have equally many places for images. Where the images are fewer than the
    places, the rest of the places weighs nothing, wherever in the global batch they are: so the
    gradient is the same however the batch is shared out.

    Args:
        clips: Clips of the global batch.
        images: Images of the global batch.
        frames: Latent frames of a clip.

    Attributes:
        per_clip: Places for images behind each clip.
    """

    def __init__(self, clips: int, images: int, frames: int):
        self.clips, self.images, self.frames = clips, images, frames
        self.per_clip = -(-images // clips)

    def count(self, position: int) -> int:
        """Images that count behind the clip at this place of the global batch."""
        first, last = (p * self.images // self.clips for p in (position, position + 1))
        return last - first

    def frame_weight(self, positions: range) -> Float[Tensor, "b t"] | None:
        """Weights of each row's frames and images in its loss; None if all weigh the same.

        The mean of the rows' losses over the global batch is then the mean over all frames and all
        images that count.
        """
        if self.images == self.per_clip * self.clips:
            return None
        total = self.clips * self.frames + self.images
        weight = torch.zeros(len(positions), self.frames + self.per_clip)
        for row, position in enumerate(positions):
            weight[row, : self.frames + self.count(position)] = self.clips / total
        return weight
