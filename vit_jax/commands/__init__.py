"""The commands of `vit-jax`: HELP, add_arguments(parser), run(args) each."""
