"""Accelerated masked image generation in plain PyTorch. Nothing in here knows ComfyUI.

The flow of a run, and where it lives:

    file --weights--> model, head        class --models/maskgit--> conditions, one for each guidance branch
    settings --schedule--> plan          seed --noise--> the random numbers of the whole run
    plan + model + head --denoiser--> guided logits --sampler--> codes --models/maskgit_vqgan--> pixels --image--> PNG

Letters that end the names of tensors:

    B  images in the batch       S  whole sequence a model sees       V  codebook size
    L  image tokens              D  feature width                     T  number of steps
    N  tokens still masked       K  tokens revealed by a step         h, w / Y, X  rows, columns of codes / pixels
"""
