"""Parity of schedules, losses and mixing: files without a model."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.harness import kind
from vit_jax.recipe.finetuning import hyperrule
from vit_jax.recipe.keys import default_config
from vit_jax.training import augment, losses, mixing
from vit_jax.training.schedules import make_schedule


def compare_relative(case, key, value):
  """Within meta.tolerance.rtol of each recorded entry."""
  rtol = case.meta['tolerance']['rtol']
  want = case.outputs[key].astype(np.float64)
  value = np.asarray(value, np.float64)
  if value.shape != want.shape:
    raise ValueError(f'{key}: shape {value.shape}, recorded {want.shape}')
  scale = np.maximum(np.abs(want), 1e-30)
  # The harness compares with one tolerance: bring every entry to size one.
  case.outputs[key] = want / scale
  case.compare(key, value / scale, rtol)


def schedule_config(**fields):
  """A recipe with the given schedule, and lr as the peak."""
  c = default_config()
  c.optim.lr = fields.pop('lr')
  for key, value in fields.items():
    c.schedule[key] = value
  return c


def compare_schedules(case, make):
  """Runs `make(entry)(steps)` for every recorded schedule."""
  for i, entry in enumerate(case.config):
    base = entry.get('base', entry.get('base_lr'))
    lr = jax.jit(make(entry))(case.outputs[f'{i}.steps'])
    case.compare(f'{i}.steps', case.outputs[f'{i}.steps'], 1e-12)
    case.compare(f'{i}.lr', lr, 1e-6 * base)


def google_schedule(entry, linear_end):
  """big_vision's and vit_jax's create_learning_rate_schedule."""
  name = entry['decay_type']
  total = entry['total_steps']
  fields = {
    'name': 'step' if name == 'stair' else name,
    'lr': entry['base'],
    'warmup_steps': entry.get('warmup_steps', 0),
    'cooldown_steps': entry.get('cooldown_steps', 0),
  }
  if name in ('linear', 'polynomial'):
    fields['end'] = float(entry.get('end', entry.get('linear_end', linear_end)))
    fields['power'] = float(entry.get('power', 1.0))
    if name == 'linear' and fields['power'] != 1:
      fields['name'] = 'polynomial'
  if name == 'rsqrt':
    fields['timescale'] = entry.get('timescale', 10_000)
    fields['shift'] = entry.get('shift', 0)
  if name == 'stair':
    fields['boundaries'] = tuple(entry.get('steps', ()))
    fields['factors'] = tuple(entry.get('mults', ()))
  return schedule(total, fields)


def schedule(total_steps, fields):
  """The product's schedule with the given keys of its section."""
  c = schedule_config(**fields)
  return make_schedule(
    c.schedule,
    c.optim,
    total_steps=total_steps,
    steps_per_epoch=total_steps,
    batch_size=1,
  )


@kind('big_vision_lr_schedule')
def check_big_vision_schedule(case):
  compare_schedules(case, lambda entry: google_schedule(entry, 0.0))


@kind('vit_jax_lr_schedule')
def check_vit_jax_schedule(case):
  compare_schedules(case, lambda entry: google_schedule(entry, 1e-5))


@kind('timm_cosine_schedule')
def check_timm_cosine(case):
  names = {
    'base_lr': 'lr',
    'lr_min': 'end',
    'warmup_t': 'warmup_steps',
    'warmup_lr_init': 'warmup_init',
  }

  def make(entry):
    fields = {names.get(k, k): v for k, v in entry.items()}
    # The recipe says the length of the run instead of that of its first cycle.
    cycles = range(fields.get('cycle_limit', 1))
    total = fields.pop('t_initial') * sum(
      fields.get('cycle_mul', 1.0) ** i for i in cycles
    )
    if fields.get('warmup_prefix'):
      total += fields['warmup_steps']
    return schedule(int(total), {'name': 'timm_cosine', **fields})

  compare_schedules(case, make)


@kind('bit_hyperrule')
def check_hyperrule(case):
  c = default_config()
  c.optim.lr = case.config['base_lr']
  steps = case.outputs['steps']
  sizes = case.outputs['dataset_sizes']
  case.compare('steps', steps, 1e-12)
  case.compare('dataset_sizes', sizes, 1e-12)
  rates, supports, mixup = [], [], []
  for size in sizes:
    rule = hyperrule(int(size), 224, 224)
    c.schedule.name = 'step'
    c.schedule.boundaries = rule.boundaries
    c.schedule.warmup_steps = rule.warmup_steps
    lr = make_schedule(
      c.schedule,
      c.optim,
      total_steps=rule.steps,
      steps_per_epoch=1,
      batch_size=512,
    )(steps)
    rates.append(np.where(steps < rule.steps, lr, -1))
    supports.append(
      [rule.warmup_steps, *(b - 1 for b in rule.boundaries), rule.steps]
    )
    mixup.append(rule.mixup)
  compare_relative(case, 'lr', rates)
  compare_relative(case, 'schedule', supports)
  compare_relative(case, 'mixup_alpha', mixup)
  sizes_in = case.outputs['resolution_in']
  case.compare('resolution_in', sizes_in, 1e-12)
  rules = [hyperrule(1000, *map(int, size)) for size in sizes_in]
  compare_relative(
    case, 'resolution_precrop_crop', [[r.resize, r.crop] for r in rules]
  )


@kind('big_vision_losses')
def check_big_vision_losses(case):
  functions = {
    'softmax_xent': losses.softmax_xent,
    'sigmoid_xent': losses.sigmoid_xent,
    'softmax_xent.kl': losses.softmax_kl,
  }
  for key in list(case.outputs):
    name, labels, *options = key.split('.')
    if 'kl' in options:
      name += '.kl'
    values = functions[name](
      case.inputs['logits'], case.inputs[f'labels_{labels}']
    )
    compare_relative(
      case, key, values if 'per_example' in options else jnp.mean(values)
    )


@kind('deit_distillation_loss')
def check_distillation(case):
  """Every output goes through `total_loss`."""
  cls, dist = case.inputs['logits_cls'], case.inputs['logits_dist']
  out = {'logits_class': cls, 'logits_distill': dist}
  labels = jax.nn.one_hot(case.inputs['labels'], cls.shape[-1])
  for key in list(case.outputs):
    # '<none|soft|hard>.base_<ce|smooth|softtarget>[.alphaA][.tauT]', 'base.ce'
    c = default_config().loss
    head, _, rest = key.partition('.')
    c.distill = 'none' if head == 'base' else head
    base, _, options = rest.removeprefix('base_').partition('.')
    if 'tau' in options:
      options, _, tau = options.partition('.tau')
      c.distill_tau = float(tau)
    if options:
      c.distill_alpha = float(options.removeprefix('alpha'))
    c.label_smoothing = case.config['smoothing'] if base == 'smooth' else 0.0
    target = case.inputs['soft_targets'] if base == 'softtarget' else labels
    loss, _ = losses.total_loss(
      c,
      (cls + dist) / 2,
      out,
      {'label': target},
      teacher_logits=case.inputs['teacher_logits'],
    )
    compare_relative(case, key, loss)


@kind('volo_token_label_loss')
def check_token_labels(case):
  """'<class>.<target2|target3>.boxI.denseW.clsV': losses of volo/loss."""
  cls, aux = case.inputs['logits_cls'], case.inputs['logits_aux']
  target2, target3 = case.inputs['target2'], case.inputs['target3']
  by_target = {
    'target2': {'label': target2},
    'target3': {
      'label': target3[:, :, 0],
      'token_cls': target3[:, :, 1],
      'token_labels': target3[:, :, 2:].swapaxes(1, 2),
    },
  }
  plain = {
    'SoftTargetCrossEntropy': target2,
    'TokenLabelSoftTargetCrossEntropy.target2': target2,
    'TokenLabelSoftTargetCrossEntropy.target_2cols': target3[:, :, 1],
  }
  boxes = case.config['boxes_bbx1_bby1_bbx2_bby2']
  for key in list(case.outputs):
    if key in plain:
      value = jnp.mean(losses.softmax_xent(cls, plain[key]))
      compare_relative(case, key, value)
      continue
    name, target, box, rest = key.split('.', 3)
    dense, cls_weight = map(float, rest.removeprefix('dense').split('.cls'))
    c = default_config().loss
    c.ground_truth = name == 'TokenLabelGTCrossEntropy'
    # The weight of the class term is one here: factor it out.
    c.token_weight = dense / cls_weight if cls_weight else 1.0
    out = {'logits_aux': aux, 'mix_box': boxes[int(box.removeprefix('box'))]}
    loss, terms = losses.total_loss(c, cls, out, by_target[target])
    compare_relative(
      case, key, cls_weight * loss if cls_weight else dense * terms['tokens']
    )


def drawn_mixing(lam, batch, box=(0, 0, 0, 0), cut=False):
  """Mixing with given numbers: one for the batch, or one per example."""
  return mixing.Mixing(
    jnp.broadcast_to(jnp.asarray(lam, jnp.float32), batch),
    jnp.broadcast_to(jnp.asarray(box), (batch, 4)),
    jnp.broadcast_to(jnp.asarray(cut), batch),
  )


@kind('big_vision_mixup')
def check_big_vision_mixup(case):
  partitionable = case.meta.get('threefry_partitionable', True)
  atol = case.meta['tolerance']['atol']
  images, labels = case.inputs['images'], case.inputs['labels']
  for i, entry in enumerate(case.config):
    with jax.threefry_partitionable(partitionable):
      key = jax.random.wrap_key_data(case.outputs[f'{i}.rng_in'])
      key_out, key_mix = jax.random.split(key)
      lam = mixing.mixup_lambda(key_mix, entry['p'], 'google')
    case.compare(f'{i}.rng_in', jax.random.key_data(key), 0.5)
    case.compare(f'{i}.rng_out', jax.random.key_data(key_out), 0.5)
    case.compare(f'{i}.a', lam, atol)
    mixed, targets = mixing.apply_mixing(
      images, labels, drawn_mixing(lam, len(images)), 'google'
    )
    case.compare(f'{i}.images', mixed, atol)
    case.compare(f'{i}.labels', targets, atol)


@kind('timm_mixup_cutmix')
def check_timm_mixing(case):
  """Replays timm's recorded draws, per batch, per element and per pair."""
  atol = case.meta['tolerance']['atol']
  images = jnp.asarray(case.inputs['images'])
  targets = augment.one_hot(case.inputs['labels'], case.config['num_classes'])
  batch = len(images)

  def mix(*drawn):
    mixed, mixed_targets = mixing.apply_mixing(
      images, targets, drawn_mixing(drawn[0], batch, *drawn[1:])
    )
    # timm mixes smooth targets; the loss smooths mixed ones, which is equal.
    smoothing = case.config['label_smoothing']
    return mixed, losses.smooth(mixed_targets, smoothing)

  for key in list(case.outputs):
    if key.startswith('mixup_target_'):
      lam = float(key.removeprefix('mixup_target_'))
      case.compare(key, mix(lam)[1], atol)
  for entry in case.config['cases']:
    draws = [tuple(d) for d in entry['drawn_lam_and_use_cutmix']]
    boxes = iter(entry['boxes_yl_yh_xl_xh_lam_in_lam_out'])
    lam, box, cut = [], [], []
    for drawn, use_cutmix in draws:
      use_cutmix = use_cutmix and drawn != 1
      *corners, _, corrected = next(boxes) if use_cutmix else [0] * 5 + [drawn]
      cut.append(use_cutmix)
      box.append(corners)
      lam.append(corrected)
    if entry['mode'] == 'batch':
      lam, box, cut = lam * batch, box * batch, cut * batch
    elif entry['mode'] == 'pair':  # the second half mirrors the first
      lam, box, cut = (v + v[::-1] for v in (lam, box, cut))
    lam, box, cut = np.float32(lam), np.array(box), np.array(cut)
    if entry.get('correct_lam', True) and cut.any():
      height, width = images.shape[1:3]
      areas = mixing.box_lambda(box, height, width)
      lam = np.where(cut, areas, lam)
    mixed, mixed_targets = mix(lam, box, cut)
    case.compare(f'{entry["key"]}.images', mixed, atol)
    case.compare(f'{entry["key"]}.targets', mixed_targets, atol)
