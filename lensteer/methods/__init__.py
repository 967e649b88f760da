"""One module per method: fit (activations in, a fitted object out), then layer and strength in, Steering out."""
