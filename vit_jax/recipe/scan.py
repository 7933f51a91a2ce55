"""Looks at small data sets as a whole before a run starts."""

from collections.abc import Callable, Mapping
import concurrent.futures

from vit_jax.data.batches import allowed_bad, too_many_bad, why_bad
from vit_jax.data.sources.source import Source
from vit_jax.recipe.keys import decoding
from vit_jax.recipe.sections import Config

# Larger sets take too long to decode: this many photographs take seconds.
MOST_IMAGES = 1000


def scan(
  config: Config,
  source: Source,
  eval_sets: Mapping[str, Source],
  say: Callable[[str], None],
) -> None:
  """Decodes every image of the small sets of a run.

  Without it, an unreadable image would be noticed when it is read for the first
  time, which for an eval set is after hours of training.

  Args:
    config: the recipe.
    source: of the training data; left out by a run that only evaluates.
    eval_sets: by name.
    say: prints a line.

  Raises:
    TooManyBadImages: a set has more unreadable images than the recipe allows.
  """
  how = decoding(config)
  sets = {f'eval set {name!r}': one for name, one in eval_sets.items()}
  if not config.run.eval_only:
    sets = {'training data': source, **sets}
  for name, one in sets.items():
    if one.in_memory or len(one) > MOST_IMAGES:
      continue
    with concurrent.futures.ThreadPoolExecutor(
      max(1, config.data.threads)
    ) as pool:
      reasons = pool.map(
        lambda i, one=one: why_bad(one, i, how), range(len(one))
      )
      reasons = list(reasons)
    bad = {one.describe(i): why for i, why in enumerate(reasons) if why}
    if not bad:
      continue
    fraction = config.data.max_bad_fraction
    if len(bad) > allowed_bad(fraction, len(one)):
      raise too_many_bad(bad, len(bad), one, fraction)
    listed = '\n'.join(f'  {path}: {why}' for path, why in bad.items())
    say(
      f'{name}: {len(bad)} of {len(one)} images cannot be read and will be '
      f'left out:\n{listed}'
    )
