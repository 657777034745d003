"""How programs compile: where, XLA's settings for CPUs, and JAX's persistent compile cache."""

import contextlib
import os
from pathlib import Path

import jax
import jaxlib

# From 0.10 on jaxlib's CPU compiler hands convolutions to the YNN library by default, which
# runs some on one thread and takes up to 55 times as long for the gradient of a temporal kernel
# (docs/benchmarks.md). Matrix products and sums are faster in YNN and stay there.
_YNN = "--xla_cpu_experimental_ynn_fusion_type"
_YNN_KINDS = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# XLA ends the process over a flag that it does not know, so only where it has been tried.
_YNN_VERSIONS = ((0, 10), (0, 12))


def prepare_compiler() -> None:
    """Sets the CPU compiler and the compile cache; for programs, before JAX's first work.

    Both leave alone what the environment says: XLA_FLAGS that name the fusions, and the
    folder in JAX_COMPILATION_CACHE_DIR.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    first, last = _YNN_VERSIONS
    if first <= jaxlib.version.__version_info__[:2] <= last and _YNN not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_YNN}={_YNN_KINDS}".strip()
    _use_compile_cache()


def on_cpu() -> contextlib.AbstractContextManager:
    """Computes on the CPU meanwhile, also beside an accelerator; where JAX has no CPU, as before.

    For what is computed once: a small network's hundreds of random arrays took 37 s to compile for
    an H200, two other programs compiling beside it, and take 9 s on a slow CPU.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return contextlib.nullcontext()
    return jax.default_device(cpu)


def _use_compile_cache() -> None:
    """Keeps what takes over a second to compile in the user's cache folder, for later runs."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "stunet" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no place for it: go without
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
