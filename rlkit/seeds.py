"""A seed is a pure function of what is sampled, never of a rank, an order or a count."""

from __future__ import annotations

from hashlib import blake2b

from rlkit.types import Key


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) from some parts; any other part gives an unrelated seed."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def sample_seed(seed: int, key: Key, begun: int = 0) -> int:
    """The seed of one completion of a run; begun: tokens that it has already, after which another seed goes on."""
    return derive_seed("continued", seed, *key, begun) if begun else derive_seed("sample", seed, *key)
