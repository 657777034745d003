"""Rematerialisation: what the backward pass of a block recomputes."""

import flax.linen as nn
import jax

# `jax.ad_checkpoint.checkpoint_name` of values that every policy stores: they are small, or cost
# more to recompute than the memory is worth. They are the means of group norms (which save a pass
# over the activations) and the output of attention kernels.
SAVED = "saved"

# `checkpoint_name` of the output of a residual block's first convolution. If it is stored, the
# backward pass of a frozen block recomputes no convolution: the second one is linear in its input.
CONVOLUTION = "convolution"

_save_named = jax.checkpoint_policies.save_only_these_names(SAVED)
_save_convolutions = jax.checkpoint_policies.save_only_these_names(SAVED, CONVOLUTION)


def _save_matmuls(primitive, *_, **__) -> bool:
    return primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p)


_save_both = jax.checkpoint_policies.save_from_both_policies(_save_matmuls, _save_named)

# What is recomputed: nothing; everything but convolutions and matrix products (norms, activations,
# softmax: cheap to recompute, and half of the memory); everything but the first convolution of
# residual blocks; whole blocks.
REMAT_POLICIES = {
    "none": lambda block: block,
    "elementwise": lambda block: nn.remat(block, policy=_save_both),
    "convolutions": lambda block: nn.remat(block, policy=_save_convolutions),
    "blocks": lambda block: nn.remat(block, policy=_save_named),
}
