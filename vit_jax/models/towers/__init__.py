"""Vision towers: ViTs as later papers changed them.

`tower` has the model, and each of the other files what one of the papers
changed. timm's names make these models, such as `create_model(
'vit_base_patch16_clip_224.openai')`.
"""
