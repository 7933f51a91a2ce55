"""Inference and training steps of timm and transformers, under PyTorch.

Each function prepares a candidate of `benchmarks.turns`, with the settings of
`benchmarks.models_jax`, and:

  device    'cpu' or 'gpu'
  compile   whether the model goes through torch.compile

On a GPU, "step MB" is the most memory that PyTorch has had at a time.
"""

from collections.abc import Callable
from typing import Any

import torch

CLASSES = 1000
_Measured = tuple[Callable[[], object], dict[str, Callable[[], float]]]


def _device(settings: dict[str, Any]) -> str:
  return 'cuda' if settings.get('device') == 'gpu' else 'cpu'


def _prepare(settings: dict[str, Any]) -> None:
  """TensorFloat-32 for float32 on a GPU, which JAX takes there too."""
  torch.manual_seed(0)
  if _device(settings) == 'cuda':
    torch.set_float32_matmul_precision('high')


def _measured(run: Callable[[], object], settings: dict[str, Any]) -> _Measured:
  """A run that ends when the device has done its work, and its memory."""
  if _device(settings) == 'cpu':
    return run, {}

  def once():
    run()
    torch.cuda.synchronize()

  return once, {'step MB': lambda: torch.cuda.max_memory_allocated() / 1e6}


def _images(settings: dict[str, Any]) -> torch.Tensor:
  size = settings['size']
  return torch.randn(settings['batch'], 3, size, size, device=_device(settings))


def _timm(settings: dict[str, Any]) -> torch.nn.Module:
  import timm

  _prepare(settings)
  model = timm.create_model(settings['model'], num_classes=CLASSES)
  return model.to(_device(settings), memory_format=torch.channels_last)


def _autocast(settings: dict[str, Any]):
  """bfloat16 as users of PyTorch turn it on; float32 stays as it is."""
  return torch.autocast(
    _device(settings),
    torch.bfloat16,
    enabled=settings['dtype'] == 'bfloat16',
  )


def matrix_product(settings: dict[str, Any]) -> _Measured:
  """`count` products of square matrices of `size`, one after the other."""
  _prepare(settings)
  size, dtype = settings['size'], getattr(torch, settings['dtype'])
  x = torch.full((size, size), 1 / size, dtype=dtype, device=_device(settings))

  def once():
    y = x
    for _ in range(settings['count']):
      y = y @ x
    return y

  return _measured(once, settings)


def inference(settings: dict[str, Any]) -> _Measured:
  """The logits of a batch by timm, with random weights."""
  model = _timm(settings).eval()
  images = _images(settings)
  if settings['dtype'] == 'bfloat16':  # faster than autocast
    model, images = model.bfloat16(), images.bfloat16()
  if settings.get('compile'):
    model = torch.compile(model)

  def once():
    with torch.inference_mode():
      return model(images)

  return _measured(once, settings)


def training(settings: dict[str, Any]) -> _Measured:
  """A training step of timm with AdamW and cross entropy."""
  model = _timm(settings).train()
  images = _images(settings)
  labels = torch.randint(
    CLASSES, (settings['batch'],), device=_device(settings)
  )
  # `fused` is the fastest form of the optimizer.
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-3, weight_decay=0.05, fused=True
  )
  forward = torch.compile(model) if settings.get('compile') else model

  def once():
    with _autocast(settings):
      loss = torch.nn.functional.cross_entropy(forward(images).float(), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

  return _measured(once, settings)


def transformers_inference(settings: dict[str, Any]) -> _Measured:
  """The logits of Hugging Face's ViT of the same size."""
  import timm
  import transformers

  peer = timm.create_model(settings['model'])
  config = transformers.ViTConfig(
    hidden_size=peer.embed_dim,
    num_hidden_layers=len(peer.blocks),
    num_attention_heads=peer.blocks[0].attn.num_heads,
    intermediate_size=peer.blocks[0].mlp.fc1.out_features,
    image_size=settings['size'],
    patch_size=peer.patch_embed.patch_size[0],
    num_labels=CLASSES,
  )
  _prepare(settings)
  model = transformers.ViTForImageClassification(config).eval()
  model = model.to(_device(settings))
  images = _images(settings)
  if settings['dtype'] == 'bfloat16':
    model, images = model.bfloat16(), images.bfloat16()

  def once():
    with torch.inference_mode():
      return model(images).logits

  return _measured(once, settings)
