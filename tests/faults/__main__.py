"""The command line of the soak; see the package."""

import argparse
import os
import pathlib
import sys
import tempfile


def main() -> int:
  """Prints the table; 1 if something happened that must not."""
  parser = argparse.ArgumentParser(prog='python -m tests.faults')
  parser.add_argument('--minutes', type=float, default=60)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--scenarios', type=int, help='end after so many')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='vit_jax_faults_') as name:
    folder = pathlib.Path(name)
    (folder / 'runs').mkdir()
    os.environ.update(
      JAX_PLATFORMS='cpu',
      # Every process but the first one finds its programs compiled.
      JAX_COMPILATION_CACHE_DIR=str(folder / 'compiled'),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1',
    )
    # Importing them imports JAX, which reads its settings only then.
    from tests.compiler import FAST_COMPILE
    from tests.faults.soak import soak

    os.environ['XLA_FLAGS'] = (
      f'--xla_force_host_platform_device_count=1 {FAST_COMPILE}'
    )
    report = soak(folder / 'runs', args.seed, args.minutes, args.scenarios)
    print('\n'.join(report.lines()), flush=True)
    return 1 if report.problems or report.wrong_examples else 0


if __name__ == '__main__':
  sys.exit(main())
