"""Training losses: classification, distillation, token labels, regularizer.

Losses are computed in float32, whatever the dtype of the logits. Each of them
returns one value per example; `total_loss` combines those that a recipe's
section `loss` names. Shapes: B examples, C classes, N tokens.
"""

from collections.abc import Callable, Mapping, Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp


def smooth(targets: jax.Array, smoothing: float) -> jax.Array:
  """Label smoothing (arXiv:1512.00567, sec. 7): (1 - e) * targets + e / C.

  One-hot targets become e / C for the wrong classes and 1 - e + e / C for the
  right one, as in timm. Smoothing is linear, so mixed targets that are smoothed
  equal smoothed targets that are mixed.
  """
  if not smoothing:
    return targets
  return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def to_range(targets: jax.Array, label_range: tuple[float, float]) -> jax.Array:
  """Maps labels from [0, 1] to [off, on], as big_vision's `onehot` does.

  Unlike `smooth`, it does not keep the sum of the targets.
  """
  off, on = label_range
  return off + (on - off) * targets


def softmax_xent(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Cross-entropy with target distributions: (..., C), (..., C) -> (...)."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.sum(targets.astype(jnp.float32) * log_p, axis=-1)


def sigmoid_xent(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Multi-label cross-entropy, summed over the classes: (..., C) -> (...)."""
  logits = logits.astype(jnp.float32)
  targets = targets.astype(jnp.float32)
  return -jnp.sum(
    targets * jax.nn.log_sigmoid(logits)
    + (1 - targets) * jax.nn.log_sigmoid(-logits),
    axis=-1,
  )


def binary_xent(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """DeiT's `--bce-loss`: (..., C), (..., C) -> (...).

  Every positive target becomes 1, and the loss is the mean over the classes,
  not their sum. `total_loss` sets targets up to `loss.bce_threshold` to 0
  before, as timm's option `--bce-target-thresh` does.
  """
  hard = (targets > 0).astype(jnp.float32)
  return sigmoid_xent(logits, hard) / logits.shape[-1]


# Values of loss.name.
LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'softmax': softmax_xent,
  'sigmoid': sigmoid_xent,
  'bce': binary_xent,
}


def softmax_kl(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """KL(targets || softmax(logits)): cross-entropy minus targets' entropy."""
  entropy = jnp.sum(
    jax.scipy.special.entr(targets.astype(jnp.float32)), axis=-1
  )
  return softmax_xent(logits, targets) - entropy


def soft_distillation(
  logits: jax.Array, teacher_logits: jax.Array, tau: float = 1.0
) -> jax.Array:
  """KL to the teacher at temperature tau, times tau^2 / C (arXiv:2012.12877).

  Equation 2 of the paper has no 1 / C. The released code divides by the number
  of elements instead of examples, and its recipes are tuned for that.
  """
  teacher = jax.nn.softmax(teacher_logits.astype(jnp.float32) / tau)
  kl = softmax_kl(logits.astype(jnp.float32) / tau, teacher)
  return kl * tau**2 / logits.shape[-1]


def hard_distillation(
  logits: jax.Array, teacher_logits: jax.Array
) -> jax.Array:
  """Cross-entropy with the teacher's argmax (arXiv:2012.12877, eq. 3)."""
  best = jnp.argmax(teacher_logits, axis=-1)
  return softmax_xent(logits, jax.nn.one_hot(best, logits.shape[-1]))


# Values of loss.distill.
DISTILLATIONS = ('none', 'soft', 'hard')


def mix_class_targets(
  targets: jax.Array, box: Sequence[jax.Array], num_tokens: int
) -> jax.Array:
  """Class targets of a MixToken batch (arXiv:2104.10858, sec. 3.3).

  Args:
    targets: (B, C).
    box: (row1, column1, row2, column2) on the token grid. The tokens inside
      come from the reversed batch; an empty box means no mixing.
    num_tokens: N, number of tokens of the grid.

  Returns:
    lam * targets + (1 - lam) * reversed targets, lam = 1 - area / N.
  """
  y1, x1, y2, x2 = box
  area = jnp.maximum(y2 - y1, 0) * jnp.maximum(x2 - x1, 0)
  lam = 1 - area / num_tokens
  return lam * targets + (1 - lam) * targets[::-1]


def add_ground_truth(token_cls: jax.Array, label: jax.Array) -> jax.Array:
  """Blends the teacher's class target with the label (VOLO's fine-tuning).

  The result is r * token_cls + (1 - r) * label, where r is 0.5 for an image
  whose two targets have the same best class, and 0.9 otherwise
  (`--ground-truth` of the released code). Both targets are (B, C).
  """
  agree = jnp.argmax(label, axis=-1) == jnp.argmax(token_cls, axis=-1)
  r = jnp.where(agree, 0.5, 0.9)[:, None]
  return r * token_cls + (1 - r) * label


def token_label_loss(
  logits: jax.Array,
  token_logits: jax.Array,
  cls_targets: jax.Array,
  token_targets: jax.Array,
  *,
  box: Sequence[jax.Array] | None = None,
  token_weight: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
  """Token labeling (arXiv:2104.10858, eq. 6): class plus mean token loss.

  Args:
    logits: (B, C) of the class token.
    token_logits: (B, N, C). Tokens that MixToken exchanged are back in the
      image that they came from.
    cls_targets: (B, C), before MixToken.
    token_targets: (B, N, C), or (B, C) if all tokens have the same target.
    box: MixToken's box, see `mix_class_targets`; None for no mixing.
    token_weight: weight of the token term; that of the class term is 1.

  Returns:
    The losses (B,), and the token terms (B,) without their weight.

  Raises:
    ValueError: the targets are for another number of tokens.
  """
  if token_targets.ndim == 2:
    token_targets = token_targets[:, None]
  if token_targets.shape[1] not in (1, token_logits.shape[1]):
    raise ValueError(
      f'token targets for {token_targets.shape[1]} tokens, the model has '
      f'{token_logits.shape[1]}: make the label maps for this image size'
    )
  if box is not None:
    cls_targets = mix_class_targets(cls_targets, box, token_logits.shape[1])
  tokens = jnp.mean(softmax_xent(token_logits, token_targets), axis=-1)
  return softmax_xent(logits, cls_targets) + token_weight * tokens, tokens


def attention_similarity(
  attention: Sequence[jax.Array], num_pairs: int
) -> jax.Array:
  """Cosine similarity of consecutive attention maps (arXiv:2103.11886).

  Args:
    attention: the blocks' attention, each (B, H, T, T). The similarity is that
      of vectors along the heads.
    num_pairs: number of pairs of blocks, from the first on, that count.

  Returns:
    (B,) means over pairs and positions.

  Raises:
    ValueError: there are no two blocks to compare.
  """
  pairs = list(itertools.pairwise(attention))[:num_pairs]
  if not pairs:
    raise ValueError(
      'the cosine regularizer needs at least two attention maps '
      f'and one pair, got {len(attention)} maps and '
      f'cosine_reg_blocks={num_pairs}'
    )
  norm = lambda a: jnp.sqrt(jnp.maximum(jnp.sum(a * a, axis=1), 1e-16))
  total = jnp.float32(0)
  for a, b in pairs:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    similarity = jnp.sum(a * b, axis=1) / (norm(a) * norm(b))
    total += jnp.mean(similarity, axis=(1, 2))
  return total / len(pairs)


def _check(cfg) -> None:
  if cfg.name not in LOSSES:
    raise ValueError(f'loss.name={cfg.name!r}; allowed: {", ".join(LOSSES)}')
  if cfg.distill not in DISTILLATIONS:
    raise ValueError(
      f'loss.distill={cfg.distill!r}; allowed: {", ".join(DISTILLATIONS)}'
    )


def _token_base(cfg, logits, out, targets, label):
  """The loss of a model with token logits, and its token term, both (B,)."""
  if cfg.name != 'softmax':
    raise ValueError(
      f'loss.name={cfg.name!r}: a model with token logits needs '
      "loss.name='softmax'"
    )
  token_cls, token_labels = label, label
  if 'token_labels' in targets:
    token_labels = smooth(targets['token_labels'], cfg.label_smoothing)
    token_cls = smooth(targets['token_cls'], cfg.label_smoothing)
    if cfg.ground_truth:
      token_cls = add_ground_truth(token_cls, label)
  return token_label_loss(
    logits,
    out['logits_aux'],
    token_cls,
    token_labels,
    box=out.get('mix_box'),
    token_weight=cfg.token_weight,
  )


def _class_target(cfg, label: jax.Array) -> jax.Array:
  """The target (B, C) of the class branch, of labels that are not smoothed."""
  target = to_range(label, cfg.label_range)
  smoothed = smooth(target, cfg.label_smoothing)
  if cfg.name == 'bce':
    return (smoothed > cfg.bce_threshold).astype(smoothed.dtype)
  if cfg.smooth_soft:
    return smoothed
  is_hard = jnp.max(label, axis=-1, keepdims=True) == 1
  return jnp.where(is_hard, smoothed, target)


def _distillation(cfg, student, teacher_logits) -> jax.Array:
  """The mean distillation term."""
  if teacher_logits is None:
    raise ValueError(
      f"loss.distill={cfg.distill!r} needs the teacher's "
      'logits: set loss.teacher and loss.teacher_weights'
    )
  if cfg.distill == 'soft':
    return jnp.mean(soft_distillation(student, teacher_logits, cfg.distill_tau))
  return jnp.mean(hard_distillation(student, teacher_logits))


def total_loss(
  cfg: Any,
  logits: jax.Array,
  out: Mapping[str, Any],
  targets: Mapping[str, jax.Array],
  teacher_logits: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The training loss of a recipe.

  It is weight * ((1 - alpha) * base + alpha * distillation + cosine_reg *
  similarity). The base is the loss `cfg.name` of the class branch; a model that
  returns token logits adds its token loss.

  Args:
    cfg: the recipe's `loss` section.
    logits: (B, C).
    out: the model's intermediates. If it has `logits_class` (class branch) or
      `logits_distill` (distillation branch), these replace `logits`. With
      `logits_aux` (B, N, C) there is a token loss, and `mix_box` is the box of
      MixToken. The cosine regularizer reads `attention`.
    targets: dict with 'label' (B, C), one-hot or soft, not smoothed; for token
      labels also 'token_labels' (B, N, C) and 'token_cls' (B, C).
    teacher_logits: (B, C), for distillation.

  Returns:
    The loss, a float32 scalar, and a dict of its unweighted terms.

  Raises:
    ValueError: an unknown name, or the input of a term is missing.
  """
  _check(cfg)
  class_logits = out.get('logits_class', logits)
  label = _class_target(cfg, targets['label'])
  terms = {}
  if 'logits_aux' in out:
    base, tokens = _token_base(cfg, class_logits, out, targets, label)
    terms['tokens'] = jnp.mean(tokens)
  else:
    base = LOSSES[cfg.name](class_logits, label)
  loss = terms['base'] = jnp.mean(base)

  if cfg.distill != 'none':
    student = out.get('logits_distill', logits)
    terms['distill'] = _distillation(cfg, student, teacher_logits)
    alpha = cfg.distill_alpha
    loss = (1 - alpha) * loss + alpha * terms['distill']

  if cfg.cosine_reg:
    if 'attention' not in out:
      raise ValueError(
        'loss.cosine_reg needs the attention maps: set '
        'model.return_attention = True'
      )
    similarity = attention_similarity(out['attention'], cfg.cosine_reg_blocks)
    terms['cosine'] = jnp.mean(similarity)
    loss = loss + cfg.cosine_reg * terms['cosine']
  return cfg.weight * loss, terms
