"""Packaging of the `stunet` library; `data/` and `experiments/` run from a checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "stunet/__init__.py").read_text()).group(1)

setup(
    name="stunet",
    version=VERSION,
    description="Lumiere's Space-Time U-Net for text-to-video generation, in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["stunet", "stunet.*"]),
    package_data={"stunet": ["shipped/*/*"]},  # trained models
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.5",
        "av>=18.0",
        "chex>=0.1.88",
        "flax>=0.10.4",
        "grain>=0.2.3",
        # tensorflow-datasets 4.9.10 imports it without declaring it.
        "importlib-resources>=6.0",
        "jax>=0.6.0",
        "matplotlib>=3.8",
        "ml-collections>=1.0",
        "numpy>=1.26",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11.5",
        "pillow>=10.0",
        "safetensors>=0.5",
        "scipy>=1.12",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.7",
        "tokenizers>=0.20",
        "tqdm>=4.66",
    ],
    extras_require={
        "dev": ["pytest>=8.0", "pytest-xdist>=3.5", "ruff>=0.8"],
        "studio": ["gradio>=6,<7"],
        "browser": ["playwright>=1.40"],  # the studio's tests; the browser is Debian's
        # The PyTorch modules that imported weights are held against; install torch first.
        "parity": ["diffusers==0.42.*", "sentencepiece>=0.2", "transformers>=5.0"],
        # `experiments.benchmarks.peers`; install torch first.
        "peers": ["lumiere-pytorch==0.0.24"],
    },
    entry_points={"console_scripts": ["stunet = stunet.cli:main"]},
)
