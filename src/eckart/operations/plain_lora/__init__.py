"""An adapter as plain LoRA: DoRA, saved matrices and token rows as low-rank updates of their base."""
