"""Losses against closed forms and PyTorch."""

import itertools

import chex
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.recipe.keys import default_config
from vit_jax.training import losses

B, C, N = 6, 7, 9


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


def soft(seed, *shape):
  return jax.nn.softmax(normal(seed, *shape))


def config(**fields):
  c = default_config().loss
  c.update(fields)
  return c


def test_against_torch():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  logits, labels = normal(0, B, C), np.arange(B) % C
  x, y = torch.tensor(logits), torch.tensor(labels)
  one_hot = jax.nn.one_hot(labels, C)
  for eps in (0.0, 0.1):
    np.testing.assert_allclose(
      losses.softmax_xent(logits, losses.smooth(one_hot, eps)),
      functional.cross_entropy(x, y, reduction='none', label_smoothing=eps),
      rtol=1e-5,
    )
  multi = (normal(1, B, C) > 0).astype(np.float32)
  np.testing.assert_allclose(
    losses.sigmoid_xent(logits, multi),
    functional.binary_cross_entropy_with_logits(
      x, torch.tensor(multi), reduction='none'
    ).sum(1),
    rtol=1e-5,
  )
  teacher = normal(2, B, C)
  tau = 3.0
  kl = (
    functional.kl_div(
      functional.log_softmax(x / tau, 1),
      functional.log_softmax(torch.tensor(teacher) / tau, 1),
      reduction='sum',
      log_target=True,
    )
    * tau**2
    / x.numel()
  )
  np.testing.assert_allclose(
    jnp.mean(losses.soft_distillation(logits, teacher, tau)), kl, rtol=1e-5
  )
  maps = [np.abs(normal(i, 2, 3, 4, 4)) for i in range(4)]
  similarity = torch.stack(
    [
      functional.cosine_similarity(torch.tensor(a), torch.tensor(b), dim=1)
      for a, b in itertools.pairwise(maps)
    ]
  ).mean()
  np.testing.assert_allclose(
    jnp.mean(losses.attention_similarity(maps, 2)), similarity, rtol=1e-5
  )


@given(st.integers(0, 10**6), st.floats(0, 0.9))
@settings(max_examples=20, deadline=None)
def test_smoothing_keeps_mass_and_commutes_with_mixing(seed, eps):
  a, b = soft(seed, B, C), soft(seed + 1, B, C)
  chex.assert_trees_all_close(
    losses.smooth(a, eps).sum(-1), jnp.ones(B), atol=1e-5
  )
  chex.assert_trees_all_close(
    losses.smooth(0.3 * a + 0.7 * b, eps),
    0.3 * losses.smooth(a, eps) + 0.7 * losses.smooth(b, eps),
    atol=1e-6,
  )


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_kl_is_zero_only_at_the_target(seed):
  p = soft(seed, B, C)
  chex.assert_trees_all_close(
    losses.softmax_kl(jnp.log(p), p), jnp.zeros(B), atol=2e-6
  )
  assert np.all(losses.softmax_kl(normal(seed + 1, B, C), p) > 0)
  assert np.all(np.isfinite(losses.softmax_kl(p, jnp.eye(C)[:B])))


def test_soft_distillation_of_the_teacher_itself_is_zero():
  logits = normal(0, B, C)
  chex.assert_trees_all_close(
    losses.soft_distillation(logits, logits, 3.0), jnp.zeros(B), atol=1e-6
  )
  # A teacher with probability 1 for a class gives the hard loss times tau^2 /
  # C.
  sure = 1e4 * jax.nn.one_hot(np.argmax(normal(1, B, C), -1), C)
  chex.assert_trees_all_close(
    losses.soft_distillation(logits, sure) * C,
    losses.hard_distillation(logits, sure),
    rtol=1e-5,
  )


def test_large_logits_stay_finite():
  logits = jnp.array([[1e4, -1e4, 0.0]])
  target = jnp.array([[0.0, 1.0, 0.0]])
  for loss in (losses.softmax_xent, losses.sigmoid_xent):
    value, grad = jax.value_and_grad(lambda x: loss(x, target).sum())(logits)
    assert np.isfinite(value) and np.all(np.isfinite(grad))
  maps = [jnp.zeros((1, 2, 3, 3))] * 2
  grad = jax.grad(lambda m: losses.attention_similarity(m, 1).sum())(maps)
  assert np.all(np.isfinite(grad[0]))


def test_bfloat16_logits_are_computed_in_float32():
  logits = jnp.asarray(normal(0, B, C), jnp.bfloat16)
  target = soft(1, B, C)
  for loss in (losses.softmax_xent, losses.sigmoid_xent):
    value = loss(logits, target)
    assert value.dtype == jnp.float32
    chex.assert_trees_all_close(
      value, loss(logits.astype(jnp.float32), target), rtol=1e-6
    )


def test_mix_class_targets_weighs_by_the_box():
  targets = soft(0, B, C)
  mixed = losses.mix_class_targets(targets, (1, 0, 3, 2), 16)
  chex.assert_trees_all_close(
    mixed, 0.75 * targets + 0.25 * targets[::-1], atol=1e-6
  )
  empty = losses.mix_class_targets(targets, (3, 2, 3, 4), 16)
  chex.assert_trees_all_equal(empty, targets)


def test_ground_truth_weights():
  token_cls = jnp.array([[0.6, 0.4], [0.3, 0.7]])
  label = jnp.array([[1.0, 0.0], [1.0, 0.0]])
  chex.assert_trees_all_close(
    losses.add_ground_truth(token_cls, label),
    jnp.array([[0.8, 0.2], [0.37, 0.63]]),
    atol=1e-6,
  )


@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_total_loss_plain(name):
  logits, target = normal(0, B, C), soft(1, B, C)
  loss, terms = losses.total_loss(
    config(name=name, label_smoothing=0.1), logits, {}, {'label': target}
  )
  one = {'softmax': losses.softmax_xent, 'sigmoid': losses.sigmoid_xent}[name]
  expected = one(logits, losses.smooth(target, 0.1)).mean()
  chex.assert_trees_all_close(loss, expected, rtol=1e-6)
  assert set(terms) == {'base'}


def test_soft_labels_are_left_alone_and_the_loss_is_weighted():
  """Noisy Student: mean of the labeled plus ratio times that of the others."""
  logits = jax.random.normal(jax.random.key(0), (4, 3))
  soft = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
  label = jnp.concatenate([jnp.eye(3)[:1], soft])
  c = config(label_smoothing=0.1, smooth_soft=False, weight=4.0)
  got, _ = losses.total_loss(c, logits, {}, {'label': label})
  labeled = losses.softmax_xent(logits[:1], losses.smooth(label[:1], 0.1))
  others = losses.softmax_xent(logits[1:], soft)
  np.testing.assert_allclose(
    got, jnp.mean(labeled) + 3 * jnp.mean(others), rtol=1e-6
  )


def test_total_loss_distils_the_distillation_branch():
  cls, dist, teacher = (normal(i, B, C) for i in range(3))
  target = {'label': soft(3, B, C)}
  c = config(distill='hard', distill_alpha=0.3)
  out = {'logits_class': cls, 'logits_distill': dist}
  loss, terms = losses.total_loss(c, (cls + dist) / 2, out, target, teacher)
  base = losses.softmax_xent(cls, target['label']).mean()
  hard = losses.hard_distillation(dist, teacher).mean()
  chex.assert_trees_all_close(loss, 0.7 * base + 0.3 * hard, rtol=1e-6)
  assert set(terms) == {'base', 'distill'}
  # A model with one head is distilled on its logits.
  loss, _ = losses.total_loss(c, cls, {}, target, teacher)
  hard = losses.hard_distillation(cls, teacher).mean()
  chex.assert_trees_all_close(loss, 0.7 * base + 0.3 * hard, rtol=1e-6)


def test_total_loss_of_tokens():
  cls, aux = normal(0, B, C), normal(1, B, N, C)
  box = jnp.array([0, 1, 2, 3])
  targets = {
    'label': soft(2, B, C),
    'token_cls': soft(3, B, C),
    'token_labels': soft(4, B, N, C),
  }
  out = {'logits_aux': aux, 'mix_box': box}
  loss, terms = losses.total_loss(config(), cls, out, targets)
  lam = 1 - 4 / N
  y = lam * targets['token_cls'] + (1 - lam) * targets['token_cls'][::-1]
  tokens = losses.softmax_xent(aux, targets['token_labels']).mean()
  chex.assert_trees_all_close(
    loss, losses.softmax_xent(cls, y).mean() + 0.5 * tokens, rtol=1e-6
  )
  chex.assert_trees_all_close(terms['tokens'], tokens, rtol=1e-6)
  # Without label maps every token has the image's label.
  loss, _ = losses.total_loss(
    config(), cls, {'logits_aux': aux}, {'label': targets['label']}
  )
  repeated = jnp.repeat(targets['label'][:, None], N, axis=1)
  chex.assert_trees_all_close(
    loss,
    losses.softmax_xent(cls, targets['label']).mean()
    + 0.5 * losses.softmax_xent(aux, repeated).mean(),
    rtol=1e-6,
  )


def test_total_loss_adds_the_regularizer():
  maps = [np.abs(normal(i, B, 3, 4, 4)) for i in range(3)]
  targets = {'label': soft(0, B, C)}
  plain, _ = losses.total_loss(config(), normal(1, B, C), {}, targets)
  loss, terms = losses.total_loss(
    config(cosine_reg=0.1), normal(1, B, C), {'attention': maps}, targets
  )
  chex.assert_trees_all_close(loss, plain + 0.1 * terms['cosine'], rtol=1e-6)
  assert 0 < terms['cosine'] <= 1
  _same, terms = losses.total_loss(
    config(cosine_reg=0.1),
    normal(1, B, C),
    {'attention': maps[:1] * 3},
    targets,
  )
  chex.assert_trees_all_close(terms['cosine'], jnp.float32(1), rtol=1e-5)


@pytest.mark.parametrize(
  'fields, out, message',
  [
    (dict(name='hinge'), {}, 'hinge.*softmax, sigmoid'),
    (dict(distill='medium'), {}, 'medium.*none, soft, hard'),
    (dict(distill='hard'), {}, 'loss.teacher'),
    (dict(cosine_reg=0.1), {}, 'return_attention'),
    (
      dict(cosine_reg=0.1),
      {'attention': [np.ones((B, 1, 2, 2))]},
      'two attention maps',
    ),
    (dict(name='sigmoid'), {'logits_aux': np.ones((B, N, C))}, 'softmax'),
  ],
)
def test_total_loss_errors(fields, out, message):
  with pytest.raises(ValueError, match=message):
    losses.total_loss(
      config(**fields), np.ones((B, C)), out, {'label': np.ones((B, C))}
    )


def test_token_label_count_is_checked():
  with pytest.raises(ValueError, match='4 tokens, the model has 9'):
    losses.token_label_loss(
      np.ones((B, C)), np.ones((B, N, C)), np.ones((B, C)), np.ones((B, 4, C))
    )


def test_bce_threshold_comes_after_smoothing():
  """Procedure A1 (arXiv:2110.00476): smoothing 0.1, threshold 0.2."""
  logits = normal(0, B, C)
  pair = lambda share: (
    share * jnp.eye(C)[:B] + (1 - share) * jnp.eye(C)[1 : B + 1]
  )
  settings = config(name='bce', label_smoothing=0.1, bce_threshold=0.2)
  value = lambda label: losses.total_loss(
    settings, logits, {}, {'label': label}
  )
  both, first = pair(0.5), pair(0.9)
  np.testing.assert_allclose(
    value(both)[0], jnp.mean(losses.binary_xent(logits, both)), rtol=1e-6
  )
  np.testing.assert_allclose(
    value(first)[0], jnp.mean(losses.binary_xent(logits, pair(1.0))), rtol=1e-6
  )


def test_bce_makes_every_positive_target_one():
  """DeiT's --bce-loss on mixed targets: both labels count in full."""
  torch = pytest.importorskip('torch')
  logits = normal(0, B, C)
  mixed = 0.3 * jnp.eye(C)[:B] + 0.7 * jnp.eye(C)[:B][::-1]
  loss, _ = losses.total_loss(config(name='bce'), logits, {}, {'label': mixed})
  expected = torch.nn.BCEWithLogitsLoss()(
    torch.tensor(logits), torch.tensor(np.array(mixed > 0, np.float32))
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
