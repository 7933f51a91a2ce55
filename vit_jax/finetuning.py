"""Fine-tunes a model on a folder of images by the published settings.

    summary = finetune('vit_b16', 'ViT-B_16.npz', 'flowers', 'runs/flowers')

The settings are in `vit_jax.recipe.finetuning`: SGD with momentum 0.9, cosine
with linear warm-up, clip 1, no weight decay, a new head that starts at zero,
random crops of 5 to 100 % of the area, and flips. The length follows from the
number of images.
"""

from typing import Any

from vit_jax.recipe.finetuning import folder_config


def finetune(
  model: str | None, weights: str, data: str, workdir: str, **options: Any
) -> dict[str, Any]:
  """Fine-tunes and evaluates; a stopped run continues where it was.

  Args:
    model: registered name; None takes the one that the weights are of.
    weights: .npz, .pth, .safetensors, workdir or hub name; '' starts from
      random initialization.
    data: image folder (train/ and test/ with a directory per class, or class
      directories alone), or a directory that `vit-jax pack` wrote.
    workdir: where checkpoints, metrics and the summary go.
    **options: of `folder_config`: `steps` or `epochs` (by default 500 steps
      below 20,000 images, 10,000 below 500,000, else 20,000); `lr` (by default
      0.03 for a batch of 512, in proportion); `batch_size` (512, on a CPU 32);
      `image_size` (by default the model's own; the papers use 384);
      `head_only`; `layer_decay` (factor of the rate from block to block towards
      the input); `holdout` (fraction of a flat folder for testing); `seed`;
      `module` (a Python module that registers the model); `fields` of the
      model.

  Returns:
    The summary of `train_and_evaluate`: summary['results']['test']['top1'].
  """
  from vit_jax import train

  return train.train_and_evaluate(
    folder_config(model, weights, data, **options), workdir
  )
