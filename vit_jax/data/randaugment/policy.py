"""Reads the names of RandAugment policies."""

import math
import re

from vit_jax.data.randaugment.google import GoogleRandAugment
from vit_jax.data.randaugment.timm import TimmRandAugment

Policy = GoogleRandAugment | TimmRandAugment


def parse(
  policy: str,
  *,
  fill: tuple[int, int, int] = (128, 128, 128),
  interpolation: str = 'bicubic',
) -> Policy | None:
  """Reads a policy.

  Args:
    policy: '' for none; 'google(LAYERS,MAGNITUDE)'; or 'rand' with timm's
      options: m (magnitude), mstd (standard deviation of the magnitude; above
      100 the magnitude is uniform), mmax (largest magnitude), n (number of
      operations), p (probability of each), inc (1 for operations that grow
      more severe with the magnitude, else 0).
    fill: RGB color of the pixels that timm's geometric operations leave empty.
    interpolation: interpolation of those operations: 'bilinear', 'bicubic', or
      'random', which draws one of the two for each operation.

  Returns:
    None, or a callable (image, rng) -> (image, applied operations).

  Raises:
    ValueError: the policy cannot be read.
  """
  if not policy:
    return None
  help_text = (
    "data.randaugment takes '', 'google(LAYERS,MAGNITUDE)' such as "
    "'google(2,15)', or timm's 'rand-m9-mstd0.5-inc1' (options "
    'm, mstd, mmax, n, p, inc)'
  )
  number = r'(\d+(?:\.\d+)?)'
  google = re.fullmatch(rf'google\(\s*(\d+)\s*,\s*{number}\s*\)', policy)
  if google:
    return GoogleRandAugment(int(google[1]), float(google[2]))
  head, *words = policy.split('-')
  if head != 'rand':
    raise ValueError(f'cannot read {policy!r}: {help_text}')
  keys = {
    'm': 'magnitude',
    'mstd': 'std',
    'mmax': 'maximum',
    'n': 'layers',
    'p': 'probability',
    'inc': 'increasing',
  }
  options = {}
  for word in words:
    match = re.fullmatch(rf'([a-z]+){number}|(mstd)(inf)', word)
    if not match or (match[1] or match[3]) not in keys:
      raise ValueError(f'cannot read {word!r} in {policy!r}: {help_text}')
    options[keys[match[1] or match[3]]] = float(match[2] or match[4])
  if options.get('std', 0) > 100:
    options['std'] = math.inf
  if not 0 <= options.get('probability', 0.5) <= 1:
    raise ValueError(f'p in {policy!r} must be in [0, 1]: {help_text}')
  options['layers'] = int(options.get('layers', 2))
  options['increasing'] = bool(options.get('increasing', 0))
  return TimmRandAugment(**options, fill=fill, interpolation=interpolation)
