"""Mixup and CutMix on the device.

`draw_mixing` draws the random numbers of a batch, and `apply_mixing` mixes each
image with its partner. Partners come from the global batch, so the number of
devices does not change them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Values of data.mix_style, with the function from a group of examples (n, ...)
# to their partners: timm reverses the batch, Google rolls it by one. 'permute'
# draws a permutation, as big_transfer does.
PARTNERS: dict[str, Callable[[jax.Array], jax.Array] | None] = {
  'timm': lambda x: x[::-1],
  'google': lambda x: jnp.roll(x, 1, axis=0),
  'permute': None,
}


# Values of data.mix_mode: which examples of a group share a coefficient, a box
# and the choice of CutMix. 'batch': all of them; 'pair': an example and its
# partner in the reversed group; 'elem': none.
MODES = ('batch', 'pair', 'elem')


class Mixing(NamedTuple):
  """The random numbers of one batch's mixing, one entry per example.

  Fields:
    lam: (B,) weight of an example's own targets and, in mixup, of its pixels.
    box: (B, 4), (top, bottom, left, right) of the box that CutMix takes from
      the partner.
    cut: (B,) bool, whether an example gets CutMix instead of mixup.
    partner: (B,) index of the partner for style 'permute', else None.
  """

  lam: jax.Array
  box: jax.Array
  cut: jax.Array
  partner: jax.Array | None = None


def box_lambda(box: jax.Array, height: int, width: int) -> jax.Array:
  """The fraction of the image that the box (..., 4) leaves uncovered."""
  top, bottom, left, right = (box[..., i] for i in range(4))
  return 1 - (bottom - top) * (right - left) / (height * width)


def random_box(
  key: jax.Array, lam: jax.Array, height: int, width: int
) -> jax.Array:
  """A random box for CutMix: (top, bottom, left, right), (4,) int32.

  Its sides are sqrt(1 - lam) of the image's. The center is uniform, and the box
  is clipped to the image.
  """
  side = jnp.sqrt(1 - lam)
  half_h = (height * side).astype(jnp.int32) // 2
  half_w = (width * side).astype(jnp.int32) // 2
  y_key, x_key = jax.random.split(key)
  y = jax.random.randint(y_key, (), 0, height)
  x = jax.random.randint(x_key, (), 0, width)
  return jnp.stack(
    [
      jnp.clip(y - half_h, 0, height),
      jnp.clip(y + half_h, 0, height),
      jnp.clip(x - half_w, 0, width),
      jnp.clip(x + half_w, 0, width),
    ]
  )


def mixup_lambda(
  key: jax.Array, alpha: float, style: str = 'timm'
) -> jax.Array:
  """Draws lam from Beta(alpha, alpha); 'google' takes max(lam, 1 - lam)."""
  lam = jax.random.beta(key, alpha, alpha)
  return jnp.maximum(lam, 1 - lam) if style == 'google' else lam


def _draw_one(key: jax.Array, cfg, height: int, width: int):
  """One draw of (lam, box, cut)."""
  on_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
  lam, cut = jnp.float32(1), jnp.bool_(False)
  box = jnp.zeros(4, jnp.int32)
  if cfg.mixup:
    lam = mixup_lambda(mixup_key, cfg.mixup, cfg.mix_style)
  if cfg.cutmix:
    drawn = jax.random.beta(cutmix_key, cfg.cutmix, cfg.cutmix)
    box = random_box(box_key, drawn, height, width)
    cut = (
      jax.random.bernoulli(switch_key, cfg.switch_prob)
      if cfg.mixup
      else jnp.bool_(True)
    )
    lam = jnp.where(cut, box_lambda(box, height, width), lam)
  on = jax.random.bernoulli(on_key, cfg.mix_prob)
  return jnp.where(on, lam, 1.0), box, cut & on


def _draw_partners(key: jax.Array, batch: int, slices: int) -> jax.Array:
  """Partners within each micro-batch: (B,) indices of a random permutation.

  Micro-batch i of n has the examples i, i + n, i + 2 n, ...
  """
  own = jnp.arange(batch).reshape(-1, slices)
  columns = jax.random.permutation(key, own, axis=0, independent=True)
  return columns.reshape(batch)


def _draw_group(key: jax.Array, cfg, size: int, height: int, width: int):
  """The (lam, box, cut) of the examples of one group, each of length `size`."""
  if cfg.mix_mode == 'batch':
    drawn = _draw_one(key, cfg, height, width)
    return [jnp.repeat(x[None], size, axis=0) for x in drawn]
  count = size if cfg.mix_mode == 'elem' else -(-size // 2)
  drawn = jax.vmap(lambda k: _draw_one(k, cfg, height, width))(
    jax.random.split(key, count)
  )
  # In mode 'pair' the second half mirrors the first; 'elem' has none.
  return [jnp.concatenate([x, x[: size - count][::-1]]) for x in drawn]


def draw_mixing(
  key: jax.Array, cfg: Any, shape: tuple[int, ...], slices: int = 1
) -> Mixing:
  """Draws the mixing of a batch.

  Args:
    key: random key.
    cfg: the recipe's `data` section: mixup, cutmix, switch_prob, mix_prob,
      mix_style, mix_mode, mix_groups.
    shape: (B, H, W, 3) of the images.
    slices: number of micro-batches of the step. Style 'permute' mixes within
      each; micro-batch i has the examples i, i + slices, ...

  Returns:
    The coefficients, boxes and choices of all examples. Those that share theirs
    (`MODES`) are in one of `mix_groups` groups. Group g is the g-th contiguous
    block of the batch, as in batch normalization with groups;
    `data.repeat_groups` spreads repeated images over the groups.
  """
  batch, height, width, _ = shape
  groups = cfg.mix_groups
  draw = lambda k: _draw_group(k, cfg, batch // groups, height, width)
  if groups == 1:
    lam, box, cut = draw(key)
  else:
    drawn = jax.vmap(draw)(jax.random.split(key, groups))
    lam, box, cut = (x.reshape(batch, *x.shape[2:]) for x in drawn)
  partner = None
  if cfg.mix_style == 'permute':
    partner = _draw_partners(jax.random.fold_in(key, 1), batch, slices)
  return Mixing(lam, box, cut, partner)


def _partner_of(mixing: Mixing, style: str, groups: int):
  """A function from an array (B, ...) to the partners of its examples."""
  find = PARTNERS[style]
  if find is None:
    return lambda x: x[mixing.partner]

  def partner(x):
    grouped = x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
    return jax.vmap(find)(grouped).reshape(x.shape)

  return partner


def _blend(x: jax.Array, weight: jax.Array, partner) -> jax.Array:
  """weight * x + (1 - weight) * partner(x), computed in float32."""
  y = x.astype(jnp.float32)
  return (weight * y + (1 - weight) * partner(y)).astype(x.dtype)


def apply_mixing(
  images: jax.Array,
  targets: Any,
  mixing: Mixing,
  style: str = 'timm',
  groups: int = 1,
) -> tuple[jax.Array, Any]:
  """Applies mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899).

  Args:
    images: (B, H, W, 3).
    targets: array (B, ...) or a tree of them, mixed with weight `mixing.lam`.
    mixing: what `draw_mixing` returned.
    style: key of PARTNERS.
    groups: number of contiguous blocks of the batch within which examples are
      mixed.

  Returns:
    Mixed images and targets.
  """
  partner = _partner_of(mixing, style, groups)
  spread = lambda v, like: v.reshape(-1, *(1,) * (like.ndim - 1))
  outside = 1.0 - inside_box(mixing.box, *images.shape[1:3])
  weight = jnp.where(
    spread(mixing.cut, images), outside, spread(mixing.lam, images)
  )
  return (
    _blend(images, weight, partner),
    jax.tree.map(lambda t: _blend(t, spread(mixing.lam, t), partner), targets),
  )


def _check_mixing(cfg, batch: int, targets) -> None:
  """ValueError for mixing that cannot work."""
  if cfg.mix_style not in PARTNERS:
    raise ValueError(
      f'data.mix_style={cfg.mix_style!r}; allowed: {", ".join(PARTNERS)}'
    )
  if cfg.mix_mode not in MODES:
    raise ValueError(
      f'data.mix_mode={cfg.mix_mode!r}; allowed: {", ".join(MODES)}'
    )
  for name in ('mixup', 'cutmix'):
    if cfg[name] < 0:
      raise ValueError(
        f'data.{name}={cfg[name]}: must be the positive parameter of a Beta '
        'distribution, or 0 to switch it off'
      )
  if cfg.mix_groups < 1 or batch % cfg.mix_groups:
    raise ValueError(
      f'data.mix_groups={cfg.mix_groups} does not divide the batch of {batch}: '
      'use a divisor, or 1 for one coefficient per batch'
    )
  if cfg.cutmix and 'token_labels' in targets:
    raise ValueError(
      f'data.cutmix={cfg.cutmix} cannot be used with token labels: set it to 0 '
      '(the model mixes tokens itself)'
    )


def mix(
  images: jax.Array,
  targets: dict[str, jax.Array],
  key: jax.Array,
  cfg: Any,
  slices: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mixup or CutMix of a batch, one draw for each of `mix_groups` groups.

  Args:
    images: (B, H, W, 3), normalized.
    targets: dict of arrays (B, ...), as `losses.total_loss` takes them.
    key: random key.
    cfg: the recipe's `data` section, see `draw_mixing`.
    slices: number of micro-batches of the step.

  Returns:
    Mixed images and targets.

  Raises:
    ValueError: an unknown style, a negative parameter, groups that do not
      divide the batch, or CutMix of images with token labels.
  """
  _check_mixing(cfg, images.shape[0], targets)
  if not cfg.mixup and not cfg.cutmix:
    return images, targets
  mixing = draw_mixing(key, cfg, images.shape, slices)
  return apply_mixing(images, targets, mixing, cfg.mix_style, cfg.mix_groups)


def inside_box(box: jax.Array, height: int, width: int) -> jax.Array:
  """Which pixels are inside of boxes.

  Args:
    box: (B, 4), (top, bottom, left, right) in pixels.
    height, width: size of the images.

  Returns:
    bool (B, H, W, 1).
  """
  top, bottom, left, right = (box[:, i, None, None, None] for i in range(4))
  y = jnp.arange(height).reshape(1, -1, 1, 1)
  x = jnp.arange(width).reshape(1, 1, -1, 1)
  return (y >= top) & (y < bottom) & (x >= left) & (x < right)
