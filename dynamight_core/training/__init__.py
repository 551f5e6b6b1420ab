"""How it is learned: data, losses, latent inference, schedule, reference update, checkpoints."""
