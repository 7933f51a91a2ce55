"""How tests compile programs, in their own process and in those they start.

Tests spend most of their time in the compiler, on thousands of small programs.
All processes must have the same options, because they share what is compiled.
"""

# Less optimization halves the time of compilation. The older emitters halve
# what is left for small programs, and take a fifth off for whole models.
FAST_COMPILE = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false'
)
