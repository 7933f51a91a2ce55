"""Prints the code by which a shell completes commands and options on Tab.

  vit-jax completion bash >> ~/.bashrc
  vit-jax completion zsh >> ~/.zshrc

It takes effect in the next shell.
"""

import argparse

HELP = 'complete commands and options in the shell'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'shell', choices=('bash', 'zsh', 'fish', 'tcsh'), help='name of the shell'
  )


def run(args: argparse.Namespace) -> None:
  from argcomplete import shell_integration

  print(shell_integration.shellcode(['vit-jax'], shell=args.shell))
