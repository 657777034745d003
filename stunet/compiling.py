"""Compiler settings: XLA's flags for CPUs and JAX's persistent compilation cache."""

import contextlib
import os
from pathlib import Path

import jax
import jaxlib
from jax._src import xla_bridge  # no public function reports whether JAX has started

from stunet.paths import AnyPath, is_remote

# Since 0.10 jaxlib's CPU compiler passes convolutions to the YNN library by default, which runs
# some of them on one thread: the gradient of a temporal kernel takes up to 55 times as long
# (docs/benchmarks.md). Matrix products and sums are faster in YNN and stay there.
_YNN = "--xla_cpu_experimental_ynn_fusion_type"
_YNN_KINDS = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# XLA ends the process over an unknown flag, so set it only for versions that were tested.
_YNN_VERSIONS = ((0, 10), (0, 12))


def prepare_compiler(cache: AnyPath | None = None) -> None:
    """Sets the CPU compiler's flags and the compilation cache; for programs, at their start.

    Args:
      cache: Folder of the cache, on disk or in a bucket; see `use_compilation_cache`.
    """
    set_cpu_flags()
    use_compilation_cache(cache)


def set_cpu_flags() -> None:
    """Keeps XLA's CPU compiler from slow convolutions, by a flag in XLA_FLAGS.

    `stunet.model.load` calls this. XLA reads the flags once, when JAX starts its first backend (at
    its first computation or `jax.devices()`); after that this function does nothing, so that the
    environment keeps describing the running compiler (JAX's cache keys include it). A choice of
    fusions that XLA_FLAGS already contains is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    first, last = _YNN_VERSIONS
    known = first <= jaxlib.version.__version_info__[:2] <= last
    if known and _YNN not in flags and not xla_bridge.backends_are_initialized():
        os.environ["XLA_FLAGS"] = f"{flags} {_YNN}={_YNN_KINDS}".strip()


def use_compilation_cache(folder: AnyPath | None = None) -> None:
    """Stores programs that took over a second to compile.

    Keeps a directory that was configured before (JAX_COMPILATION_CACHE_DIR).

    Args:
      folder: Folder of the cache, on disk or in a bucket. JAX creates it when it first compiles.
        None uses the user's cache directory.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = user_cache_folder() if folder is None else folder
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    if is_remote(folder):  # XLA's own caches, which are for GPUs, are written to disks only
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def user_cache_folder() -> Path | None:
    """Returns the folder of compiled programs in the user's cache directory, and creates it.

    None if there is no home directory or it is not writable.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "stunet" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder


def shared_cache_environment() -> dict[str, str]:
    """Returns the environment for training runs that share the user's cache of compiled programs.

    Without it each run has a cache in its workdir.
    """
    folder = jax.config.jax_compilation_cache_dir or user_cache_folder()
    cache = {} if folder is None else {"JAX_COMPILATION_CACHE_DIR": str(folder)}
    return {**os.environ, **cache}


def on_cpu() -> contextlib.AbstractContextManager:
    """Returns a context in which JAX computes on the CPU; without a CPU backend it has no effect.

    For programs that run once: drawing a small network's hundreds of random arrays took 37 s to
    compile for an H200 (beside two other compilations) and takes 9 s on a slow CPU.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes it
        return contextlib.nullcontext()
    return jax.default_device(cpu)
