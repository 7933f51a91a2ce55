"""Fine-tunes a model on a folder of images with the published settings.

    summary = finetune('vit_b16', 'ViT-B_16.npz', 'flowers', 'runs/flowers')

The settings are in `vit_jax.recipe.finetuning`: SGD with momentum 0.9, a linear
warm-up and a cosine, gradients clipped to norm 1, no weight decay, a new head
that starts at zero, random crops of 5 to 100 % of the area, and flips. The
number of steps depends on the number of images.
"""

from typing import Any

from vit_jax.recipe.finetuning import folder_config


def finetune(
  model: str | None,
  weights: str,
  data: str,
  workdir: str,
  *,
  show_batch: str = '',
  **options: Any,
) -> dict[str, Any]:
  """Fine-tunes and evaluates a model; a stopped run continues.

  Args:
    model: registered name; None takes the model that the weights name.
    weights: .npz, .pth, .safetensors, workdir or hub name; '' starts from
      random parameters.
    data: folder of images (train/ and test/ with a directory per class, or
      only class directories), or a directory that `vit-jax pack` wrote.
    workdir: directory for checkpoints, metrics and the summary.
    show_batch: see `train_and_evaluate`.
    **options: options of `folder_config`:
      `steps` or `epochs`: length; by default 500 steps below 20,000 images,
        10,000 below 500,000, else 20,000.
      `lr`: peak learning rate; by default 0.03 for a batch of 512, and in
        proportion for other batch sizes.
      `batch_size`: images of all devices together; by default 512, on a CPU 32.
      `image_size`: pixels, or (height, width); by default the model's own. The
        papers use 384.
      `head_only`: train only the head, a linear probe.
      `layer_decay`: factor of the learning rate from each block to the block
        before it.
      `holdout`: fraction of the images for testing, if the folder has no test/;
        0 trains on all images and evaluates nothing.
      `flat`: every folder is a class, also one named 'train' or 'test'.
      `match_classes`: the key data.match_classes: 'names', 'numbers' or 'new'.
      `max_bad_fraction`: fraction of the images that may be unreadable (0.01);
        one always may.
      `seed`: seed of all random numbers.
      `module`: Python module that registers the model.
      `fields`: {name: value} of fields of the model.
      `keys`: {'section.key': value} of other keys of the recipe.

  Returns:
    The summary of `train_and_evaluate`; the accuracy is
    summary['results']['test']['top1'].

  Raises:
    ConfigError: the settings do not fit the model or the data.
    WeightsError: the weights cannot be read or do not fit the model.
  """
  from vit_jax import train

  return train.train_and_evaluate(
    folder_config(model, weights, data, **options),
    workdir,
    show_batch=show_batch,
  )
