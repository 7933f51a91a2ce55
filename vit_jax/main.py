"""python -m vit_jax.main --config=configs/X.py[:ARG] --workdir=DIR

Trains and evaluates a recipe. Any key can be overridden:
--config.optim.lr=3e-4. Exit codes: 0 done, 1 an error (its message last), 3
stopped by a preemption after saving.
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Recipe: configs/X.py, with an argument after a colon.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory for checkpoints, metrics and the summary.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'host:port of process 0, where it is not detected.'
)
_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes, where it is not detected.'
)
_PROCESS = flags.DEFINE_integer(
  'process_id', None, 'Number of this process, where it is not detected.'
)


# --config.model.FIELD=VALUE, taken out of the command line: the fields are the
# model's, so a recipe that does not set one has nothing for absl to override.
_MODEL_FIELDS: dict[str, str] = {}


def take_model_fields(argv):
  """Removes --config.model.FIELD=VALUE from argv and remembers it."""
  rest = []
  for arg in argv:
    name, equals, value = arg.lstrip('-').partition('=')
    if arg.startswith('-') and name.startswith('config.model.') and equals:
      _MODEL_FIELDS[name.removeprefix('config.model.')] = value
    else:
      rest.append(arg)
  return rest


def run(argv) -> int:
  if len(argv) > 1:
    raise ValueError(
      f'unexpected argument {argv[1]!r}; all settings are '
      'flags: --config=configs/X.py --workdir=DIR'
    )
  config = _CONFIG.value  # reading it raises what is wrong with the file
  if config is None or _WORKDIR.value is None:
    raise ValueError('--config=configs/X.py and --workdir=DIR are required')
  config.run  # noqa: B018  a recipe file that failed to load shows here
  if not any(a.startswith(('-v', '--v', '--verbosity')) for a in sys.argv):
    logging.set_verbosity(logging.WARNING)

  from vit_jax.parallel import processes
  from vit_jax.parallel.watchdog import session
  from vit_jax.recipe.checks import check
  from vit_jax.recipe.overrides import set_model_fields

  set_model_fields(config, _MODEL_FIELDS)
  check(config)
  processes.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  from vit_jax import train

  try:
    with session(_WORKDIR.value, orderly=(train.Preempted,)):
      train.train_and_evaluate(config, _WORKDIR.value)
  except train.Preempted as e:
    print(e, file=sys.stderr)
    return 3
  return 0


def parse(argv):
  """absl's parsing, with what is wrong with a key or its value as one line."""
  try:
    return flags.FLAGS(argv)
  except (AttributeError, TypeError, ValueError, flags.Error) as e:
    print(
      'error: ' + ' '.join(str(e).replace('\\n', '\n').split()), file=sys.stderr
    )
    sys.exit(1)


def main(argv) -> None:
  try:
    code = run(argv)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    code = 130
  except Exception as e:
    logging.debug('failed', exc_info=True)
    if os.environ.get('VIT_JAX_TRACEBACK') or not isinstance(
      e, (ValueError, OSError, RuntimeError, AttributeError, TypeError)
    ):
      import traceback

      traceback.print_exc()
    print(f'error: {e}', file=sys.stderr)
    code = 1
  sys.stdout.flush()
  sys.exit(code)


if __name__ == '__main__':
  sys.argv[:] = take_model_fields(sys.argv)  # absl reads sys.argv itself
  app.run(main, flags_parser=parse)
