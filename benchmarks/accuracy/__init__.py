"""What each evaluation buys: every method against latent and image error on the bundled model (`make accuracy`)."""
