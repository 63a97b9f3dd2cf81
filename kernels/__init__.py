"""Hand-written Triton kernels, each beside its plain-torch reference.

Tensors are NHWC with neighbouring channels. The multiplying kernels (`conv2d`, `upsample_conv2d`, `conv_transpose2d`,
`linear`) share one description of what happens before and after the product, `epilogue.Prologue` and
`epilogue.Epilogue`. An engine packs a weight once (`layer.pack_conv2d`, `pack_upsample_conv2d`,
`pack_conv_transpose2d`, `linear.pack_linear`) and runs the `Layer` often (`convolve.run_layer`).

Importing these modules needs neither Triton nor a GPU; `toolchain.unavailable(device)` says why a device can't serve.
A kernel is interpreted or compiled for good when Triton is first imported: with `TRITON_INTERPRET=1` in the
environment by then every kernel runs on CPU tensors, slowly; without it, on CUDA tensors. The tests set it in
`tests/conftest.py` on machines without a GPU. A process of the interpreter can't compile, so ahead-of-time checks run
in a process of their own, `python -m tilefuse.kernels.inspect`, which takes the variable out of its environment.
"""
