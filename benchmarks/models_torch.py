"""Inference and training steps of timm and transformers, under PyTorch.

Each function prepares a candidate of `benchmarks.turns`, with the settings of
`benchmarks.models_jax`, and:

  compile   whether the model goes through torch.compile
"""

from collections.abc import Callable
from typing import Any

import torch

CLASSES = 1000


def _images(settings: dict[str, Any]) -> torch.Tensor:
  torch.manual_seed(0)
  size = settings['size']
  return torch.randn(settings['batch'], 3, size, size)


def _timm(settings: dict[str, Any]) -> torch.nn.Module:
  import timm

  model = timm.create_model(settings['model'], num_classes=CLASSES)
  return model.to(memory_format=torch.channels_last)


def _autocast(settings: dict[str, Any]):
  """bfloat16 as users of PyTorch turn it on; float32 stays as it is."""
  return torch.autocast(
    'cpu', torch.bfloat16, enabled=settings['dtype'] == 'bfloat16'
  )


def inference(settings: dict[str, Any]) -> Callable[[], object]:
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

  return once


def training(settings: dict[str, Any]) -> Callable[[], object]:
  """A training step of timm with AdamW and cross entropy."""
  model = _timm(settings).train()
  images = _images(settings)
  labels = torch.randint(CLASSES, (settings['batch'],))
  # `fused` is the fastest form of the optimizer on a CPU.
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

  return once


def transformers_inference(settings: dict[str, Any]) -> Callable[[], object]:
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
  model = transformers.ViTForImageClassification(config).eval()
  images = _images(settings)
  if settings['dtype'] == 'bfloat16':
    model, images = model.bfloat16(), images.bfloat16()

  def once():
    with torch.inference_mode():
      return model(images).logits

  return once
