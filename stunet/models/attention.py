"""Attention without a mask: one function for every attention layer, with a choice of kernels.

Backends:

- `einsum` stores the weights of all pairs of queries and keys.
- `flash` is JAX's splash attention kernel for TPUs, which keeps the weights in fast memory
  (arXiv 2205.14135). XLA cannot partition it, so it runs under `jax.shard_map`. On a CPU it is
  interpreted, which is slow and serves tests.
- `cudnn` is the fused attention of cuDNN, for 16-bit types on GPUs.

Logits and softmax are float32 in all of them.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stunet.errors import UserError
from stunet.models.remat import SAVED

BACKENDS = ("einsum", "flash", "cudnn")
# Fewest queries and keys for a kernel. From this length on, the float32 logits of heads of width 64
# take more than twice the memory of 16-bit queries, keys and values.
MIN_LENGTH = 256
CUDNN_MAX_HEAD_DIM = 128

# Rows and columns of the logits that the TPU kernel computes at a time, multiples of its 128 lanes.
# A block of float32 logits (6 MB) has to fit into the chip's fast memory.
QUERY_BLOCK = 1024
KEY_BLOCK = 1408
LANES = 128


def attention(
    query: Float[Array, "*batch queries heads head_dim"],
    key: Float[Array, "*batch keys heads head_dim"],
    value: Float[Array, "*batch keys heads head_dim"],
    backend: str | None = None,
    mesh: Mesh | AbstractMesh | None = None,
) -> Float[Array, "*batch queries heads head_dim"]:
    """Computes softmax(q k^T / sqrt(head_dim)) v for each head.

    Args:
      query: `[..., Q, H, D]`.
      key: `[..., K, H, D]`.
      value: `[..., K, H, D]`.
      backend: One of `BACKENDS`. None chooses by device, size and dtype (`choose_backend`).
      mesh: Device mesh. Its axes "data" and "fsdp" may shard the first axis of the arrays. None
        means one device.
    """
    if backend is None:
        (*_, queries, _, head_dim), keys = query.shape, key.shape[-3]
        backend = choose_backend(platform_of(mesh), queries, keys, head_dim, query.dtype)
    if backend == "flash":
        return _sharded_flash(query, key, value, mesh)
    if backend == "cudnn":
        return _cudnn(query, key, value)
    return _einsum(query, key, value)


def choose_backend(platform: str, queries: int, keys: int, head_dim: int, dtype: DTypeLike) -> str:
    """Chooses a backend: a kernel for long sequences on devices that have one, else the einsum.

    Args:
      platform: Such as "cpu", "gpu" or "tpu".
      queries: Number of queries.
      keys: Number of keys.
      head_dim: Width of a head.
      dtype: Type of queries, keys and values.
    """
    if min(queries, keys) < MIN_LENGTH:
        return "einsum"
    if platform == "tpu":
        return "flash"
    supported = jnp.dtype(dtype).itemsize == 2 and head_dim <= CUDNN_MAX_HEAD_DIM
    if platform == "gpu" and supported and head_dim % 8 == 0:
        return "cudnn"
    return "einsum"


def check_backend(backend: str | None) -> None:
    """Checks the name of a backend.

    Raises:
      UserError: There is no such backend.
    """
    if backend is not None and backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise UserError(f"attention: unknown backend {backend!r}, expected one of {known}")


def platform_of(mesh: Mesh | AbstractMesh | None) -> str:
    """Returns the platform of the devices of a mesh, or JAX's default platform."""
    if isinstance(mesh, Mesh):
        return mesh.devices.flat[0].platform
    return jax.default_backend()


def _einsum(query, key, value):
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits / math.sqrt(query.shape[-1])).astype(value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value)


def _cudnn(query, key, value):
    folded = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    return jax.nn.dot_product_attention(*folded, implementation="cudnn").reshape(query.shape)


def _sharded_flash(query, key, value, mesh):
    """Applies `_flash` to the shards of each device."""
    flash = functools.partial(_flash, interpret=platform_of(mesh) == "cpu")
    outer = jax.sharding.get_abstract_mesh()  # of a surrounding `jax.shard_map`
    mesh = mesh if outer.empty else outer
    axes = set() if mesh is None else set(mesh.axis_names) - set(outer.manual_axes)
    if not axes:
        return flash(query, key, value)
    rows = tuple(axis for axis in ("data", "fsdp") if axis in axes)
    if query.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        rows = ()  # every device computes the whole batch
    spec = PartitionSpec(rows)
    # Outputs that several devices compute redundantly are not marked as replicated.
    sharded = jax.shard_map(
        flash, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=axes, check_vma=False
    )
    return sharded(query, key, value)


def _flash(query, key, value, interpret):
    *batch, queries, heads, head_dim = query.shape
    keys = key.shape[-3]
    query_block, key_block = _block_size(queries, QUERY_BLOCK), _block_size(keys, KEY_BLOCK)

    def heads_first(x: jax.Array, block: int) -> jax.Array:
        """Returns `[B, H, length, D]`, padded to a multiple of the block."""
        x = jnp.swapaxes(x.reshape(-1, *x.shape[-3:]), 1, 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0)))

    query = heads_first(query / math.sqrt(head_dim), query_block)
    key, value = heads_first(key, key_block), heads_first(value, key_block)
    # Padding is a segment of its own, which no query belongs to.
    is_padding = jnp.arange(key.shape[2]) >= keys
    segments = splash_attention.SegmentIds(
        jnp.zeros(query.shape[2], jnp.int32), is_padding.astype(jnp.int32)
    )
    mask = splash_attention.FullMask((query.shape[2], key.shape[2]))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_kv_compute=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_kv_dkv_compute=key_block,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )
    result = jax.vmap(functools.partial(kernel, segment_ids=segments))(query, key, value)
    return jnp.swapaxes(result[:, :, :queries], 1, 2).reshape(*batch, queries, heads, head_dim)


def _block_size(length: int, largest: int) -> int:
    """Returns the multiple of `LANES`, at most `largest`, that needs the least padding."""
    blocks = -(-length // largest)
    return -(-length // (blocks * LANES)) * LANES
