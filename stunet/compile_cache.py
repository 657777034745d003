"""JAX's persistent compile cache, in the user's cache folder."""

import os
from pathlib import Path

import jax


def use_compile_cache() -> None:
    """Keeps what takes over a second to compile in the user's cache folder, for later runs.

    Leaves alone a folder that the environment names (JAX_COMPILATION_CACHE_DIR), and goes
    without where none can be made.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "stunet" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
