"""How a process is handed an entry of a Secret: by an environment variable, on a laptop as in a pod."""

from __future__ import annotations

SECRET_PREFIX = "KD_SECRET_"


def secret_variable(secret: str) -> str:
    """Name of the environment variable of Secret ``name/key``: KD_SECRET_<NAME>_<KEY>, dashes and dots as _."""
    return SECRET_PREFIX + "".join(c if c.isalnum() else "_" for c in secret).upper()
