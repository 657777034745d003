"""Parsing of TPU topologies and of compiled programs, without the TPU compiler."""

import pytest

from experiments.tpu.topologies import collective_bytes, describe_topology
from stunet.errors import UserError

HLO = """
  %all-gather.1 = bf16[8,16]{1,0:T(8,128)} all-gather(bf16[2,16]{1,0} %p), dimensions={0}
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(f32[4]{0} %q), dimensions={0}
  %done = f32[16]{0} all-gather-done((f32[4]{0}, f32[16]{0}) %start)
  %p = (bf16[2,4]{1,0}, bf16[2,4]{1,0}, u32[]{:S(2)}, u32[]) collective-permute-start(bf16[2,4] %r)
  %one = f32[32]{0:T(128)} all-gather-start(f32[8]{0} %s)
  %sum = (f32[10]{0}, bf16[6]{0}) all-reduce(f32[10]{0} %a, bf16[6]{0} %b), to_apply=%add
  %norm = f32[] all-reduce(f32[] %c), to_apply=%add
  %dot = f32[128,128]{1,0} dot(f32[128,64]{1,0} %x, f32[64,128]{1,0} %y)
"""


def test_collectives_are_counted_once_and_by_their_results():
    assert collective_bytes(HLO) == {
        "all-gather": 8 * 16 * 2 + 16 * 4 + 32 * 4,
        "collective-permute": 2 * 4 * 2,
        "all-reduce": 10 * 4 + 6 * 2 + 4,
    }


@pytest.mark.parametrize("name", ["v5p", "v5p:4", "v9:4x4", "v5p:4x4x"])
def test_invalid_topology(name):
    with pytest.raises(UserError, match=f"--topology={name}: .*CHIP:AxB .*v4, v5e, v5p, v6e"):
        describe_topology(name)
