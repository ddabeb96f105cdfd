"""Our VAE in the place of Wan's in pipelines of diffusers: they decode and encode with it."""

import pytest
import torch
from torch.testing import assert_close

from tests.builders.tiny_vae import TINY, scramble
from vae import VideoVAE
from vae.pipeline_vae import PipelineVAE

MEAN, STD = (0.5, -0.25, 0.0, 1.0), (2.0, 0.5, 1.0, 3.0)
SIZE = {"height": 16, "width": 32}


@pytest.fixture(scope="module")
def vae():
    return scramble(VideoVAE(TINY)).eval()


def pipeline(name, vae):
    """A pipeline with a tiny random transformer and no text encoder."""
    pytest.importorskip("transformers")
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    ).eval()
    found = getattr(diffusers, name)(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    found.set_progress_bar_config(disable=True)
    return found


def generated(pipe, output_type, **options):
    """`b t c h w` in [0, 1], or latents."""
    return pipe(
        prompt_embeds=torch.linspace(-1, 1, 64).view(1, 4, 16),
        guidance_scale=1.0,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type=output_type,
        **SIZE,
        **options,
    ).frames


def test_a_pipeline_decodes_what_we_decode(vae):
    wrapped = PipelineVAE(vae, mean=MEAN, std=STD)
    pipe = pipeline("WanPipeline", wrapped)
    z = generated(pipe, "latent", num_frames=9)
    assert z.shape == (1, 4, 3, 2, 4)
    frames = generated(pipe, "pt", num_frames=9)
    mean, std = (torch.tensor(values).view(4, 1, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = (vae.decode(z * std + mean) / 2 + 0.5).clamp(0, 1)
    assert frames.shape == (1, 9, 3, 16, 32)
    assert frames.std() > 0.01
    assert_close(frames, expected.transpose(1, 2), rtol=0, atol=1e-5)
    normalized = pipeline("WanPipeline", PipelineVAE(vae, mean=MEAN, std=STD, normalized=True))
    assert_close(generated(normalized, "pt", num_frames=9), frames, rtol=0, atol=1e-5)


def test_a_pipeline_encodes_what_we_encode(vae):
    """With next to no noise the first latents are those of the video."""
    video = torch.rand(5, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    pipe = pipeline("WanVideoToVideoPipeline", PipelineVAE(vae, mean=MEAN, std=STD))
    assert (pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial) == (4, 8)
    given = {"dtype": torch.float32, "device": torch.device("cpu"), "num_channels_latents": 4}
    x = pipe.video_processor.preprocess_video(video[None], **SIZE)
    assert x.shape == (1, 3, 5, 16, 32)
    z = pipe.prepare_latents(
        x,
        1,
        **given,
        **SIZE,
        generator=torch.Generator().manual_seed(0),
        timestep=pipe.scheduler.timesteps[-1:],
    )
    mean, std = (torch.tensor(values).view(4, 1, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = (vae.encode(2 * video.transpose(0, 1)[None] - 1).mode() - mean) / std
    assert pipe.scheduler.sigmas[999] == 0.001
    assert_close(z, expected, rtol=0, atol=0.01)
    assert expected.std() > 0.1


def test_the_posterior_and_its_normalized_form(vae):
    x = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    raw, normalized = (
        PipelineVAE(vae, mean=MEAN, std=STD, normalized=n).encode(x).latent_dist
        for n in (False, True)
    )
    mean, std = (torch.tensor(values).view(4, 1, 1, 1) for values in (MEAN, STD))
    assert_close(normalized.mode(), (raw.mean - mean) / std)
    draws = [each.sample(torch.Generator().manual_seed(3)) for each in (raw, normalized)]
    assert_close(draws[1], (draws[0] - mean) / std)
    wrapped = PipelineVAE(vae, normalized=True)
    assert_close(wrapped.decode(raw.mode()).sample, vae.decode(raw.mode()))
    assert wrapped.encode(x, return_dict=False)[0].mean.shape == raw.mean.shape


def test_the_config_says_what_pipelines_ask(vae):
    wrapped = PipelineVAE(vae, mean=(0.5,), std=(2.0,))
    config = wrapped.config
    assert (config.scale_factor_temporal, config.scale_factor_spatial) == (4, 8)
    assert (wrapped.temporal_compression_ratio, wrapped.spatial_compression_ratio) == (4, 8)
    assert 2 ** sum(wrapped.temperal_downsample) == 4
    assert 2 ** len(wrapped.temperal_downsample) == 8 == 2 ** (len(config.block_out_channels) - 1)
    assert (config.z_dim, config.latents_mean, config.latents_std) == (4, [0.5] * 4, [2.0] * 4)
    assert wrapped.latents_std.tolist() == config.latents_std
    assert wrapped.dtype == torch.float32
    assert PipelineVAE(vae, std=STD, normalized=True).config.latents_std == [1.0] * 4
    with pytest.raises(ValueError, match=r"std=\(1.0, 2.0\) .* z_dim=4"):
        PipelineVAE(vae, std=(1.0, 2.0))
