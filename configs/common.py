"""What recipes share: parsing their argument, the smoke variant."""

from vit_jax.models.registry import model_info


def parse_arg(arg: str | None, *, model: str = '', options=()):
  """Splits 'b16,ft384,smoke' into a model and switches.

  Args:
    arg: what stands after the colon of --config=configs/X.py:ARG.
    model: the model if none is named; '' if the recipe takes none.
    options: the switches that the recipe knows, besides 'smoke'.

  Returns:
    model, set of switches given.

  Raises:
    ValueError: a word that is no switch where no model is expected.
  """
  words = [w for w in (arg or '').split(',') if w]
  known = {*options, 'smoke'}
  given = {w for w in words if w in known}
  rest = [w for w in words if w not in known]
  if rest and model:
    model = rest.pop(0)
  if rest:
    raise ValueError(f'unknown argument {rest[0]!r} of this recipe; '
                     f'switches: {", ".join(sorted(known))}')
  return model, given


def feed_as_trained(config):
  """Sets normalisation and test crop to those of the model's authors."""
  info = model_info(config.model.name)
  config.data.normalize = info.normalize
  config.eval.crop = 0.0 if info.crop == 'squash' else float(info.crop)
  config.eval.interpolation = info.interpolation
  return config


def smoke(config, **model_fields):
  """Shrinks a recipe to a few seconds on one CPU, on synthetic data.

  The kind of model, loss, optimizer and augmentation stay; sizes go.
  `model_fields` are the small sizes of the recipe's family.
  """
  config.run.epochs = config.run.examples = None
  config.run.steps = 4
  config.run.pretrained = ''
  config.data.source, config.data.dir = 'synthetic', ''
  config.data.split = 'train'
  config.data.num_classes, config.data.num_examples = 10, 64
  config.data.batch_size = 16
  config.data.image_size = 32
  if config.data.resize is not None:
    config.data.resize = 36
  config.data.device_resize = None
  config.data.labels = ''
  if config.loss.distill != 'none':
    config.loss.teacher, config.loss.teacher_weights = 'vit_ti16', 'random'
  config.optim.accumulate = min(config.optim.accumulate, 2)
  s = config.schedule
  s.warmup_epochs = s.warmup_examples = None
  s.warmup_steps = 1
  s.cooldown_steps = min(s.cooldown_steps, 1)
  if config.mesh.preset == 'fsdp_tensor':
    config.mesh.preset = 'fsdp'
  config.mesh.fsdp = config.mesh.tensor = -1
  config.eval.sets = {}
  config.eval.every_epochs = None
  config.eval.every_steps = 2
  config.log.every_steps = 1
  config.log.checkpoint_minutes = None
  config.log.checkpoint_steps = 2
  config.model.update(model_fields)
  return config


VIT_SMOKE = dict(patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
