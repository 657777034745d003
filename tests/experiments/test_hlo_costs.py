"""The roofline of a compiled program's operations, for a program that is computed by hand."""
# ruff: noqa: E501 (the compiler's lines)

import pytest

from experiments.tpu.hlo_costs import KERNELS, Cost, costs, time_by_kind
from experiments.tpu.topologies import between_slices_bytes, collective_bytes

HLO = """
%conv (a: bf16[8,64,64,256], k: bf16[3,3,256,256]) -> bf16[8,64,64,256] {
  %a = bf16[8,64,64,256]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %k = bf16[3,3,256,256]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[8,64,64,256]{3,0,2,1:T(8,128)(2,1)} convolution(%a, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, metadata={op_name="jit(f)/transpose(jvp(N))/checkpoint/rematted_computation/temporal_up/conv_space/conv_general_dilated"}
}

%pairs (l: bf16[6,32,64], r: bf16[6,32,48]) -> bf16[6,64,48] {
  %l = bf16[6,32,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %r = bf16[6,32,48]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %p = bf16[6,64,48]{2,1,0:T(8,128)(2,1)} convolution(%l, %r), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0fb_0io->0bf, metadata={op_name="jit(f)/jvp(N)/dot_general"}
}

%neither (n: bf16[8,64,64,256]) -> bf16[8,64,64,256] {
  ROOT %n = bf16[8,64,64,256]{3,2,1,0:T(8,128)(2,1)} parameter(0)
}

%either (o: bf16[8,64,64,256]) -> bf16[8,64,64,256] {
  %o = bf16[8,64,64,256]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %t = bf16[8,64,64,256]{3,2,1,0:T(8,128)(2,1)} transpose(%o), dimensions={0,2,1,3}
}

ENTRY %main (x: bf16[8,64,64,256], w: bf16[3,3,256,256]) -> bf16[8,64,64,256] {
  %x = bf16[8,64,64,256]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %w = bf16[3,3,256,256]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %y = bf16[8,64,64,256]{3,0,2,1:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%conv
  %g = bf16[6,32,64]{2,1,0:T(8,128)(2,1)S(1)} slice(%y)
  %h = bf16[6,32,48]{2,1,0:T(8,128)(2,1)} slice(%y)
  %q = bf16[6,64,48]{2,1,0:T(8,128)(2,1)} fusion(%g, %h), kind=kOutput, calls=%pairs
  %moved = bf16[8,64,64,256]{3,2,1,0:T(8,128)(2,1)} copy(%y)
  %sum = (bf16[8]{0}, bf16[8]{0}) all-gather-start(%moved), dimensions={0}
  %one = bf16[8,64,64,256]{3,2,1,0:T(8,128)(2,1)} conditional(%p, %moved, %moved), branch_computations={%neither, %either}
  ROOT %e = bf16[8,64,64,256]{3,2,1,0:T(8,128)(2,1)} add(%moved, %moved), metadata={op_name="jit(f)/jvp(N)/add"}
}
"""
CLIP = 8 * 64 * 64 * 256 * 2  # bytes


def costs_of_products():
    return [cost for cost in costs(HLO) if cost.kind != "norms, activations and the rest"]


def test_a_convolution_does_not_count_products_with_padding():
    conv = costs_of_products()[0]
    taps = (64 * 3 - 2) ** 2  # along each axis two taps fall on padding
    assert conv.flops == 2 * 8 * taps * 256 * 256
    assert conv.bytes == 2 * CLIP + 9 * 256 * 256 * 2
    assert conv.kind == "spatial convolutions, recomputed"


def test_a_batch_of_matrix_products_is_a_convolution_of_mostly_padding():
    pairs = costs_of_products()[1]
    assert pairs.kind == "matrix products"
    assert pairs.flops == 2 * 6 * 64 * 32 * 48
    # 48 columns take 128 in memory; the first operand is in fast memory.
    assert pairs.bytes == 6 * 32 * 128 * 2 + 6 * 64 * 128 * 2


def test_time_is_the_maximum_of_products_and_memory():
    assert costs_of_products()[2] == Cost("copies and new layouts", 0.0, 2 * CLIP)
    times = time_by_kind(HLO, peak=1e12, bandwidth=1e8)
    # The copy, and the copy in one of two branches.
    assert times["copies and new layouts"] == (pytest.approx(2 * 2 * CLIP / 1e8), 0.0)
    conv = times["spatial convolutions, recomputed"]
    assert conv.peak_seconds == pytest.approx(costs_of_products()[0].flops / 1e12)
    assert conv.seconds == pytest.approx(costs_of_products()[0].bytes / 1e8)
    assert next(iter(times)) == max(times, key=lambda kind: times[kind].seconds)


KERNEL = """
ENTRY %main (q: bf16[8,6,256,64], k: bf16[8,6,384,64]) -> bf16[8,6,256,64] {
  %i = s8[1,1,1]{2,1,0} parameter(0)
  %q = bf16[8,6,256,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %k = bf16[8,6,384,64]{3,2,1,0:T(8,128)(2,1)} parameter(2)
  %memory = bf16[8,6,256,64]{3,2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %splash_mha_fwd_no_residuals.1 = bf16[8,6,256,64]{3,2,1,0:T(8,128)(2,1)} custom-call(%i, %q, %k, %k), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,1,1]{2,1,0}, bf16[8,6,256,64]{3,2,1,0}, bf16[8,6,384,64]{3,2,1,0}, bf16[8,6,384,64]{3,2,1,0}}
  ROOT %splash_mha_dkv_no_residuals.2 = bf16[8,6,384,64]{3,2,1,0:T(8,128)(2,1)} custom-call(%i, %q, %k, %k), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,1,1]{2,1,0}, bf16[8,6,256,64]{3,2,1,0}, bf16[8,6,384,64]{3,2,1,0}, bf16[8,6,384,64]{3,2,1,0}}
}
"""


def test_flops_of_attention_kernels_are_counted_by_hand():
    forward, gradient = costs(KERNEL)
    pairs = 8 * 6 * 256 * 384
    assert (forward.kind, forward.flops) == (KERNELS, 2 * 2 * pairs * 64)
    assert (gradient.kind, gradient.flops) == (KERNELS, 5 * 2 * pairs * 64)
    # Heads of 64 take 128 in memory. The first operand is an index.
    assert forward.bytes == 1 + 8 * 6 * (256 + 384 + 384 + 256) * 128 * 2


def test_transfers_between_slices_are_not_collectives_within_one():
    hlo = """
  %all-reduce.1 = bf16[144,8,128]{2,1,0:T(8,128)(2,1)} all-reduce(%a), replica_groups={{0,1,2,3}}
  %send.1 = (bf16[36,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%b, %c), channel_id=12, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.2 = (f32[4,128]{1,0}, u32[], token[]) send(%b, %c), \
frontend_attributes={_xla_megascale_transfer_type="ALL_GATHER"}
  %send-done.1 = token[] send-done(%send.1)
"""
    assert collective_bytes(hlo) == {"all-reduce": 144 * 8 * 128 * 2}
    assert between_slices_bytes(hlo) == {"all-reduce": 36 * 8 * 128 * 2, "all-gather": 4 * 128 * 4}
