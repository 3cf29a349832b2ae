"""Ways to get the features of a step without a full pass, a file each. The protocol is `denoiser.Predictor`."""
