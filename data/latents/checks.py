"""Whether latent caches fit each other and a model, before anything slow."""

from data.latents.dataset import LatentDataset


def check_alike(latents: LatentDataset, other: LatentDataset, *, classes: bool) -> None:
    """Refuse (`ValueError`) latents of another VAE, of another shape or, with `classes`, of others
    than those that `latents` has."""
    other.check_vae(latents.vae_hash)
    if other.latent_shape != latents.latent_shape:
        raise ValueError(
            f"{other.folder}: latents of shape {other.latent_shape}, but those of "
            f"{latents.folder} are {latents.latent_shape}"
        )
    if classes and other.class_names != latents.class_names:
        raise ValueError(f"{other.folder}: its classes are not those of {latents.folder}")


def check_labelled(latents: LatentDataset) -> None:
    """Refuse (`ValueError`) latents without a label before the first comes up in a batch."""
    without = sum(latents.label(i) < 0 for i in range(len(latents)))
    if without:
        raise ValueError(
            f"{latents.folder}: {without} of {len(latents)} latents have no label; a "
            "class-conditional model needs one for each"
        )
