"""What a fine-tune will cost: simulated on tensors that hold no data, or estimated where only a count is known."""
