"""What recipes share: their argument, common settings, the smoke variant."""

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
    raise ValueError(
      f'unknown argument {rest[0]!r} of this recipe; '
      f'switches: {", ".join(sorted(known))}'
    )
  return model, given


def imagenet(config):
  """ImageNet-1k from TFDS, the last percent of training as minival."""
  config.data.source = 'tfds:imagenet2012'
  config.data.split = 'train[:99%]'
  config.mesh.preset = 'zero'
  config.eval.sets = {
    'minival': {'split': 'train[99%:]'},
    'val': {'split': 'validation'},
  }
  config.eval.crop = 224 / 256
  config.eval.every_epochs = 5.0
  config.log.checkpoint_minutes = 20.0


# AugReg's levels (arXiv:2106.10270): (RandAugment layers, magnitude), mixup.
AUGREG = {
  'none': (None, 0.0),
  'light1': ((2, 0), 0.0),
  'light2': ((2, 10), 0.2),
  'medium1': ((2, 15), 0.2),
  'medium2': ((2, 15), 0.5),
  'strong1': ((2, 20), 0.5),
  'strong2': ((2, 20), 0.8),
}


def augreg(config, model: str, switches, level: str):
  """AugReg's optimizer, loss and augmentation.

  Args:
    config: the recipe.
    model: 'b16' for vit_b16, or a registered hybrid.
    switches: a level's name, 'wd0.03', 'do0.1', 'sd0.1'.
    level: the augmentation if no switch names one.
  """
  config.model.name = model if '_vit_' in model else f'vit_{model}'
  config.model.dropout = 0.1 if 'do0.1' in switches else 0.0
  config.model.drop_path = 0.1 if 'sd0.1' in switches else 0.0
  config.loss.name = 'sigmoid'
  config.optim.name, config.optim.state_dtype = 'adam', 'bfloat16'
  config.optim.decay_style = 'schedule'
  config.optim.weight_decay = 3e-5 if 'wd0.03' in switches else 1e-4
  config.optim.clip = 1.0
  config.schedule.warmup_steps = 10_000
  policy, config.data.mixup = AUGREG[
    next((s for s in switches if s in AUGREG), level)
  ]
  config.data.randaugment = 'google({},{})'.format(*policy) if policy else ''
  config.data.mix_style = 'google'


def feed_as_trained(config):
  """Sets normalisation and test crop to those of the model's authors."""
  preprocessing = model_info(config.model.name).preprocessing
  config.data.normalize = preprocessing.normalize
  config.eval.crop = float(preprocessing.crop or 0.0)
  config.eval.interpolation = preprocessing.interpolation
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


def vit_smoke(name: str) -> dict:
  """Small sizes for a ViT or a hybrid."""
  return (
    {**VIT_SMOKE, 'patch_size': 1, 'stem': (1, 1)}
    if ('_vit_' in name)
    else VIT_SMOKE
  )
