"""Test setting: one CPU process with 8 virtual devices, strict arrays."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
    # Tests compile far more than they compute: this halves it.
    + ' --xla_backend_optimization_level=0'
    + ' --xla_llvm_disable_expensive_passes=true')

from absl import flags  # noqa: E402
import jax  # noqa: E402

# Grain reads absl flags, and pytest never parses them.
flags.FLAGS.mark_as_parsed()
jax.config.update('jax_numpy_rank_promotion', 'raise')
