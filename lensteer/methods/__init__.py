"""One module per method: fit (activations in, a fitted object out) and steering (layer and strength in, Steering out)."""
