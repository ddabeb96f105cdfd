"""Which clips an FVD compares: the fields of eval_fvd that a named protocol fixes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from eval.clips.clip_protocol import ClipProtocol
from eval.clips.source import ClipSource
from eval.features.extractors import FVDPreset
from eval.protocols.measurement import Measurement
from eval.protocols.named_protocols import DEFAULTS, resolve

Start = Literal["random", "first", "center"]


@dataclass(frozen=True, kw_only=True)
class FVDClips(Measurement):
    """Fields of `DEFAULTS`; null takes what the protocol has, or else the default named below."""

    protocol: str | None = None
    """A published protocol, which fixes the fields below as far as they are known: latte_ucf101,
    latte_sky, latte_faceforensics, stylegan_v, ivvae_table2, tats, larp_128, cdfvd_16f_128,
    far_ucf101. A flag that contradicts it is refused."""
    data_set: str | None = None
    """What `real` is, as papers call it: UCF-101, SkyTimelapse, FaceForensics, ... The result then
    says which published scores compare."""
    split: str | None = None
    """Which videos `real` holds, such as train; recorded in the result."""
    frames: Annotated[int, Ge(1)] | None = None
    """Frames per clip; null: 16."""
    stride_real: Annotated[int, Ge(1)] | None = None
    """Frames from one real clip frame to the next: the stride the generator was trained with; null:
    3."""
    stride_fake: Annotated[int, Ge(1)] | None = None
    """The same for generated videos; null: 1."""
    start_real: Start | None = None
    """Where clips begin in real videos; null: random."""
    start_fake: Start | None = None
    """Where clips begin in generated videos; null: first."""
    skip_fake: Annotated[int, Ge(0)] | None = None
    """Frames left out at the start of generated videos; 17 frames give 16 with 0 (null) or 1."""
    num_clips: Annotated[int, Ge(2)] | Literal["all"] | None = None
    """Most clips per side, one per video; null: 2048."""
    num_clips_real: Annotated[int, Ge(2)] | Literal["same", "all"] | None = None
    """Most real clips; same (null) takes as many as of generated ones, which most published
    protocols do."""
    preset: FVDPreset | None = None
    """Which implementation of I3D the features are those of; null: i3d_tf. videomae gives
    content-debiased FVD under a name of its own."""
    noise_fake: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of Gaussian noise added to generated clips, in [-1, 1] units: how far does
    it move the score?"""
    fake_is_real: bool = False
    """`fake` holds real videos, such as held-out ones, which need not be alike: the distance of two
    real sets is the floor for generated ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve(self.given(), self.protocol)  # a contradiction is refused at once

    def given(self) -> dict[str, Any]:
        """The fields of `DEFAULTS`; None where nothing was given."""
        return {field: getattr(self, field) for field in DEFAULTS}

    def real_source(self, folder: str, values: Mapping[str, Any], progress: bool) -> ClipSource:
        """The real clips.

        Args:
            folder: of videos or shards.
            values: what `resolve` gives.
            progress: show a bar.
        """
        number = {"same": values["num_clips"], "all": None}.get(
            values["num_clips_real"], values["num_clips_real"]
        )
        protocol = ClipProtocol(
            frames=values["frames"],
            stride=values["stride_real"],
            start=values["start_real"],
            num_clips=None if number == "all" else number,
            seed=self.seed,
            height=values["height"],
            width=values["width"],
        )
        return ClipSource(folder, protocol, on_error=self.on_error, progress=progress)

    def fake_source(self, folder: str, values: Mapping[str, Any], progress: bool) -> ClipSource:
        """Generated clips, or what stands in for them; see `real_source`."""
        number = values["num_clips"]
        protocol = ClipProtocol(
            frames=values["frames"],
            stride=values["stride_fake"],
            start=values["start_fake"],
            skip=values["skip_fake"],
            num_clips=None if number == "all" else number,
            seed=self.seed,
            height=values["height"],
            width=values["width"],
            noise=self.noise_fake,
        )
        return ClipSource(
            folder,
            protocol,
            generated=not self.fake_is_real,
            on_error=self.on_error,
            progress=progress,
        )
