"""A small source separator to train with the losses of torch_l1snr_fast."""
