"""The computations, one folder per backend, with the same three functions in each.

``statistics`` reads the waveforms, ``objective`` turns sums into the loss and the gradient's
per-row coefficients, ``gradient`` writes the gradient. On a CPU ``eager`` does all three for some
rows at a time: ``value_and_gradient``. What they are asked to compute is a
:class:`~torch_l1snr_fast.kernels.plan.Plan`.
"""
