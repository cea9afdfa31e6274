"""Packaging of token-guidance.

The ranges here are what the code is written for; `requirements.txt` pins the exact versions it is tested with, and
`install_packages.sh` installs those.
"""

from pathlib import Path

from setuptools import find_packages, setup

DEPENDENCIES = [
    "torch>=2.13,<3",
    "transformers>=5.23,<6",
    "tokenizers>=0.22,<1",
    "accelerate>=1.15,<2",
    "datasets>=5.2,<6",
    "pyarrow>=21",
    "hydra-core>=1.3.2,<2",
    "omegaconf>=2.3,<3",
    "safetensors>=0.8,<1",
    "numpy>=2.2,<3",
    "scipy>=1.16,<2",
    "pandas>=3.0,<4",
    "matplotlib>=3.10,<4",
    "jinja2>=3.1,<4",
    "markupsafe>=3,<4",
    "PyYAML>=6,<7",
    "tqdm>=4.67,<5",
    "nltk>=3.10,<4",
    "rouge-score>=0.1.2,<1",
    "evaluate>=0.4.6,<1",
]

DEVELOPMENT = [
    "pytest>=9,<10",
    "pytest-timeout>=2.4,<3",
    "pytest-xdist>=3.8,<4",
    "hypothesis>=6.150,<7",
    "packaging>=24",
    "ruff>=0.17,<0.18",
    "mypy>=2.4,<3",
    "pandas-stubs>=3.0,<4",
    "types-PyYAML>=6,<7",
    "types-tqdm>=4.67,<5",
]

setup(
    name="token-guidance",
    version="0.1.0",
    description="Preference-grounded token-level guidance for language model fine-tuning",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The token-guidance authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # Beside each other as in a checkout: `configs` holds YAML only, `scripts` the programs that belong to no task.
    packages=[*find_packages(include=["chat_task*", "common*", "prompt_task*", "sum_task*"]), "configs", "scripts"],
    package_data={
        "common": ["builtin/**/*", "reporting/*.html.j2"],
        "configs": ["**/*.yaml"],
        "scripts": ["published_results.yaml", "sweep_*.sh"],
    },
    entry_points={"console_scripts": ["token-guidance = common.training.console:start"]},
    include_package_data=False,
    install_requires=DEPENDENCIES,
    extras_require={
        "dev": DEVELOPMENT,
        # report_to=tensorboard, wandb, trackio
        "tensorboard": ["tensorboard>=2.20,<3"],
        "wandb": ["wandb>=0.20,<1"],
        "trackio": ["trackio>=0.40,<1"],
        "lora": ["peft>=0.21,<1"],
        # common/integrations/trl.py and the policy stage of chat_task
        "trl": ["trl>=1.16,<2", "peft>=0.21,<1"],
        "bertscore": ["bert-score>=0.3.13,<1"],
        # launchers of scripts/sweep_*.sh: local, slurm, ray
        "sweep": ["hydra-joblib-launcher>=1.2,<2"],
        "slurm": ["hydra-submitit-launcher>=1.2,<2", "submitit>=1.5.1,<2"],
        "ray": ["hydra-ray-launcher>=1.2.2,<2", "ray>=2.40,<3"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
