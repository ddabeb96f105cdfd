"""Every random choice is a pure function of named integers and strings: seed, step, item."""

import hashlib

import torch


def fold(*parts: int | str) -> int:
    """A stable 63-bit integer from `parts`, independent of process, platform and Python's hash
    seed.

    `fold(seed, "noise", step, rank)` differs from `fold(seed, "noise", step, rank + 1)` as two
    independent draws would, which sums such as `seed + step` do not give.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `fold(*parts)`."""
    return torch.Generator(device=device).manual_seed(fold(*parts))


def noise(
    shape: tuple[int, ...], seed: int, name: str, step: int, positions: range
) -> torch.Tensor:
    """Standard normal noise `(len(positions), *shape)` on the CPU, drawn for each position alone.

    `positions` are places in the global batch, so the noise of a clip does not depend on how the
    batch is shared out.
    """
    draws = [torch.randn(shape, generator=generator(seed, name, step, p)) for p in positions]
    return torch.stack(draws)
