"""la4vla: distributed pretraining of vision-language-action policies that follow the instruction, not the picture."""

__version__ = "0.1.0"
