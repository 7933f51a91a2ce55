"""The recipe of the soak: a tiny model, saved and evaluated often."""

from tests.helpers import tiny_config

STEPS = 24


def get_config(arg: str | None = None):
  """24 steps on the embedded digits, augmented on the host."""
  del arg
  return tiny_config(
    run=dict(steps=STEPS),
    data=dict(
      source='digits',
      num_classes=None,
      num_examples=None,
      crop='pad_crop',
      device_cache='off',
      mixup=0.2,
    ),
    model=dict(depth=1, dropout=0.1, drop_path=0.1),
    optim=dict(ema=0.9),
    eval=dict(every_steps=6, batch_size=180),
    log=dict(checkpoint_steps=3, keep_latest=3, keep_best=1),
  )
