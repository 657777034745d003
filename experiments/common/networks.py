"""Network configurations that several programs measure or compile."""

import dataclasses

from stunet.models.unet_config import TemporalConfig, UNetConfig

# The network that `experiments.benchmarks.peers` compares with lumiere-pytorch.
PEERS = UNetConfig(
    channels=(64, 128, 256),
    layers_per_block=(2, 2, 2),
    attention_levels=(False, True, True),
    text_dim=256,
    cross_attention_dim=256,
    pooling_heads=4,
    out_channels=3,
    temporal=TemporalConfig(resample=(True, True)),
)
PEERS_FRAMES, PEERS_SIZE = 16, 32

# The first stages of DeepFloyd IF, inflated.
IF_M = UNetConfig(
    channels=(192, 384, 576, 768),
    layers_per_block=(3, 3, 3, 3),
    attention_levels=(False, True, True, True),
    temporal=TemporalConfig(resample=(True, True, True)),
)
IF_XL = dataclasses.replace(IF_M, channels=(704, 1408, 2112, 2816), cross_attention_dim=2816)

# As many blocks as IF-I-XL, but most blocks and channels at the levels with the fewest frames. For
# this layout 5 times the frames take about 1.5 times the memory, as the paper reports
# (docs/benchmarks.md).
LATE = dataclasses.replace(IF_M, channels=(128, 1024, 2816, 2816), layers_per_block=(1, 2, 3, 6))
