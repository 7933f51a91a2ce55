"""Trains the recipe of test_resume.py; run as a process that gets killed.

python tests/resume_worker.py WORKDIR [section.key=value ...]
"""

import ast
import sys

from absl import flags

flags.FLAGS.mark_as_parsed()


def main(workdir, *settings):
  from tests.helpers import tiny_config
  from vit_jax import train

  config = tiny_config(
    run=dict(steps=24),
    data=dict(mixup=0.5, repeats=1, crop='pad_crop'),
    model=dict(drop_path=0.1, dropout=0.1),
    log=dict(checkpoint_steps=3, keep_latest=2),
  )
  for setting in settings:
    key, value = setting.split('=')
    section, key = key.split('.')
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      pass
    config[section].update({key: value})
  try:
    train.train_and_evaluate(config, workdir)
  except train.Preempted:
    return 3
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
