"""Fine-tunes a model on a folder of images by the published settings.

    summary = finetune('vit_b16', 'ViT-B_16.npz', 'flowers', 'runs/flowers')

SGD with momentum 0.9 (kept in bfloat16), cosine with linear warm-up, clip 1,
no weight decay, a fresh zero head, random crops of 5 to 100 % of the area and
flips (arXiv:2010.11929, appendix B.1.1). Length by the number of images, as in
BiT-HyperRule (arXiv:1912.11370). The recipes configs/finetune.py and
configs/bit_hyperrule.py are the same for the published data sets.
"""

from typing import Any

from vit_jax.recipe.finetuning import recipe


def finetune(
  model: str | None, weights: str, data: str, workdir: str, **options
) -> dict[str, Any]:
  """Fine-tunes and evaluates; a stopped run goes on where it was.

  Args:
    model: registered name; None takes the one the weights are of.
    weights: .npz, .pth, .safetensors, workdir or hub name; '' starts from
      random initialisation.
    data: image folder (train/ and test/ with a directory per class, or class
      directories alone), or what `vit-jax pack` wrote.
    workdir: where checkpoints, metrics and the summary go.
    **options: of `recipe`: steps or epochs (default 500, 10,000 or 20,000
      steps: fewer than 20,000 images, than 500,000, or more); lr (default 0.03
      for a batch of 512, in proportion); batch_size (512, on a CPU 32);
      image_size (the model's own; the papers use 384); head_only; layer_decay
      per block; holdout (fraction of a flat folder for testing); seed; fields
      of the model.

  Returns:
    The summary of `train_and_evaluate`: summary['results']['test']['top1'].
  """
  from vit_jax import train

  return train.train_and_evaluate(
    recipe(model, weights, data, **options), workdir
  )
