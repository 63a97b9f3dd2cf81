"""The layers of the zoo that the ahead-of-time gate compiles, with the epilogues they have there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from tilefuse.kernels import conv2d_ring
from tilefuse.kernels.convolve import check_call, plan_launch
from tilefuse.kernels.epilogue import Epilogue, Kind, Prologue, Residual
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import Layer, pack_conv2d, pack_conv_transpose2d, pack_upsample_conv2d
from tilefuse.kernels.ring_config import KINDS, ring_missing
from tilefuse.kernels.toolchain import IMAGES
from tilefuse.ops.base import Pair

# Height and width of the images: a multiple of all strides, so that rows begin at whole words.
SIZE = 96
HALF, BYTES, WORDS = torch.float16, torch.uint8, torch.uint16


@dataclass(frozen=True)
class Case:
    """One layer of a network and its epilogue.

    Attributes:
        kind: how the weight is packed; `scale` is the stride, the upsampling or the transposed stride.
        residuals: nearest factors of the residuals; a normalisation is read in the prologue where `norm` is set.
        x, out: types of input and output where they are not the weight's: pixels, converted as the backend does.
    """

    network: str
    kind: str
    inputs: int
    outputs: int
    kernel: int = 3
    scale: int = 1
    groups: int = 1
    activation: Kind = "none"
    residuals: tuple[int, ...] = ()
    shuffle: int = 1
    norm: bool = False
    activation_last: bool = False
    x: torch.dtype | None = None
    out: torch.dtype | None = None

    def layer(self, dtype: torch.dtype) -> Layer:
        """Pack a weight of these sizes."""
        pack: Callable[..., Layer] = {
            "conv": partial(pack_conv2d, stride=(self.scale, self.scale)),
            "upsample": partial(pack_upsample_conv2d, scale=(self.scale, self.scale)),
            "transposed": partial(pack_conv_transpose2d, stride=(self.scale, self.scale)),
        }[self.kind]
        transposed = self.kind == "transposed"
        size: Pair = (self.inputs, self.outputs // self.groups) if transposed else (
            self.outputs, self.inputs // self.groups
        )  # fmt: skip
        # As published: "same" convolutions; transposed ones that enlarge by exactly their stride.
        edge = (self.kernel - self.scale) // 2 if transposed else self.kernel // 2
        rest = {"output_padding": (self.scale - (self.kernel - 2 * edge),) * 2} if transposed else {}
        weight = torch.empty(*size, self.kernel, self.kernel, dtype=dtype, device="meta")
        return pack(weight, padding=(edge,) * 4, groups=self.groups, shuffle=self.shuffle, **rest)

    def launch(self, dtype: torch.dtype, target: int) -> Launch:
        """Plan the launch on tensors without memory."""
        layer, make = self.layer(dtype), partial(torch.empty, device="meta")
        x = make(1, SIZE, SIZE, self.inputs, dtype=self.x or dtype)
        height, width = layer.output_size(SIZE, SIZE)
        added = (make(1, -(-height // up), -(-width // up), layer.outputs, dtype=dtype) for up in self.residuals)
        epilogue = Epilogue(
            bias=make(layer.channels),
            activation=self.activation,
            slope=0.2,
            slopes=make(layer.channels) if self.activation == "prelu" else None,
            residuals=tuple(Residual(tensor, 1.0, 0.2, up) for tensor, up in zip(added, self.residuals, strict=True)),
            activation_last=self.activation_last,
            shuffle=self.shuffle,
            out_dtype=self.out,
            levels=self.out in IMAGES,
            flag=make(1, dtype=torch.int32) if self.out in IMAGES else None,
        )
        scale, shift = (make(1, self.inputs), make(1, self.inputs)) if self.norm else (None, None)
        prologue = Prologue(scale=scale, shift=shift, activation="relu" if self.norm else "none")
        out = check_call(x, layer, prologue, epilogue, None)
        launch = plan_launch(x, layer, prologue, epilogue, out, capability=target)
        return replace(launch, name=f"{self.network} {launch.name}")


_conv, _up, _transposed = (partial(Case, kind=kind) for kind in ("conv", "upsample", "transposed"))

CASES: tuple[Case, ...] = (
    _conv("espcn", inputs=3, outputs=64, kernel=5, activation="tanh", x=BYTES),
    _conv("espcn", inputs=3, outputs=64, kernel=5, activation="tanh"),
    _conv("espcn", inputs=64, outputs=32, activation="tanh"),
    *(_conv("espcn", inputs=32, outputs=3 * r * r, shuffle=r, out=BYTES) for r in (2, 4)),
    # Nine bytes a row are no whole words: `image_store` makes them of floats.
    _conv("espcn", inputs=32, outputs=27, shuffle=3),
    *(_conv("espcn", inputs=32, outputs=3 * r * r, shuffle=r, out=WORDS) for r in (2, 4)),
    _conv("espcn", inputs=32, outputs=48, shuffle=4, residuals=(4,)),
    *(_conv("compact", inputs=3, outputs=64, activation="prelu", x=x) for x in (BYTES, WORDS)),
    _conv("compact", inputs=64, outputs=64, activation="prelu"),
    *(_conv("compact", inputs=64, outputs=3 * r * r, shuffle=r, residuals=(r,), out=BYTES) for r in (2, 4)),
    _conv("compact", inputs=64, outputs=48, shuffle=4, residuals=(4,)),
    _conv("span", inputs=3, outputs=48),
    _conv("span", inputs=48, outputs=48, activation="silu"),
    _conv("span", inputs=192, outputs=48, kernel=1),
    *(_conv("span", inputs=48, outputs=3 * r * r, shuffle=r, out=BYTES) for r in (2, 4)),
    *(_conv("rrdb", inputs=c, outputs=64, x=x) for c, x in ((3, BYTES), (12, None), (48, None))),
    *(_conv("rrdb", inputs=64 + 32 * i, outputs=32, activation="leaky_relu") for i in range(4)),
    _conv("rrdb", inputs=192, outputs=64, residuals=(1,)),
    _conv("rrdb", inputs=192, outputs=64, residuals=(1, 1)),
    _conv("rrdb", inputs=64, outputs=64, residuals=(1,)),
    _up("rrdb", inputs=64, outputs=64, scale=2, activation="leaky_relu"),
    _conv("rrdb", inputs=64, outputs=64, activation="leaky_relu"),
    _conv("rrdb", inputs=64, outputs=3),
    *(_conv("rrdb", inputs=64, outputs=3, out=out) for out in (BYTES, WORDS)),
    _conv("srresnet", inputs=3, outputs=64, kernel=9, activation="prelu"),
    _conv("srresnet", inputs=64, outputs=256, shuffle=2, activation="prelu"),
    _conv("srresnet", inputs=64, outputs=256, shuffle=2, activation="leaky_relu"),
    _conv("srresnet", inputs=64, outputs=3, kernel=9, activation="tanh", out=BYTES),
    _conv("edsr", inputs=3, outputs=256),
    _conv("edsr", inputs=3, outputs=64, norm=True, x=BYTES),
    _conv("edsr", inputs=256, outputs=256, activation="relu"),
    _conv("edsr", inputs=256, outputs=256, residuals=(1,)),
    _conv("edsr", inputs=256, outputs=1024, shuffle=2),
    _conv("edsr", inputs=64, outputs=64, activation="relu"),
    _conv("edsr", inputs=64, outputs=576, shuffle=3),
    _conv("fsrcnn", inputs=1, outputs=56, kernel=5, activation="prelu"),
    _conv("fsrcnn", inputs=56, outputs=12, kernel=1, activation="prelu"),
    _conv("fsrcnn", inputs=12, outputs=12, activation="prelu"),
    _conv("fsrcnn", inputs=12, outputs=56, kernel=1, activation="prelu"),
    *(_transposed("fsrcnn", inputs=56, outputs=1, kernel=9, scale=r) for r in (2, 3, 4)),
    *(_transposed("fsrcnn", inputs=56, outputs=1, kernel=9, scale=r, out=BYTES) for r in (2, 4)),
    _transposed("dcgan", inputs=100, outputs=1024, kernel=4, activation="relu"),
    *(_transposed("dcgan", inputs=2 * c, outputs=c, kernel=4, scale=2, activation="relu") for c in (512, 256, 128, 64)),
    _transposed("dcgan", inputs=64, outputs=3, kernel=4, scale=2, activation="tanh"),
    _transposed("dcgan", inputs=64, outputs=3, kernel=4, scale=2, activation="tanh", out=BYTES),
    *(_up("pggan", inputs=a, outputs=b, scale=2, activation="leaky_relu") for a, b in ((64, 64), (64, 32), (32, 16))),
    _conv("pggan", inputs=32, outputs=32, activation="leaky_relu"),
    _conv("pggan", inputs=16, outputs=16, activation="leaky_relu"),
    _conv("pggan", inputs=16, outputs=3, kernel=1, out=BYTES),
    _conv("style", inputs=3, outputs=32, kernel=9),
    _conv("style", inputs=32, outputs=64, scale=2, norm=True),
    _conv("style", inputs=64, outputs=128, scale=2, norm=True),
    _conv("style", inputs=128, outputs=128, norm=True),
    _up("style", inputs=128, outputs=64, scale=2, norm=True),
    _up("style", inputs=64, outputs=32, scale=2, norm=True),
    _conv("style", inputs=32, outputs=3, kernel=9, norm=True, out=BYTES),
    _conv("u-net", inputs=64, outputs=128, scale=2, kernel=4, activation="leaky_relu"),
    _transposed("u-net", inputs=128, outputs=64, scale=2, kernel=2),
    _conv("u-net", inputs=64, outputs=64, residuals=(1,), activation="relu", activation_last=True),
    *(_conv("autoencoder", inputs=a, outputs=b, kernel=4, scale=2) for a, b in ((32, 48), (48, 64))),
    *(
        _transposed("autoencoder", inputs=32, outputs=3, kernel=8, scale=8, residuals=(1,), out=out)
        for out in (None, BYTES, WORDS)
    ),
    _conv("head", inputs=64, outputs=1024, kernel=1),
    _conv("head", inputs=784, outputs=400, kernel=1, activation="relu"),
    _conv("head", inputs=512, outputs=1, kernel=1, activation="sigmoid"),
    _conv("mobile", inputs=64, outputs=64, groups=64, activation="hardswish"),
    _conv("mobile", inputs=64, outputs=64, groups=4, activation="gelu"),
)  # fmt: skip


def conv_cases(target: int) -> Iterator[Launch]:
    """Plan every layer of the zoo in half and in true single precision, and the tiles in bfloat16."""
    for case in CASES:
        for dtype in (HALF, torch.float32):
            yield case.launch(dtype, target)
    for case in CASES:
        if case.network in ("compact", "span", "rrdb"):
            yield case.launch(torch.bfloat16, target)


def ring_cases(target: int) -> Iterator[Launch]:
    """Plan the ring kernel with every epilogue it has, where it can be compiled, whether anything chooses it or not."""
    if ring_missing(target) is not None:
        return
    for dtype in (HALF, torch.bfloat16):
        for activation in KINDS:
            case = Case("ring", "conv", 64, 64, activation=activation)
            make = partial(torch.empty, device="meta")
            image = make(1, SIZE, SIZE, 64, dtype=dtype)
            slopes = make(64) if activation == "prelu" else None
            epilogue = Epilogue(bias=make(64), activation=activation, slope=0.2, slopes=slopes)
            yield conv2d_ring.plan_launch(image, case.layer(dtype), epilogue, torch.empty_like(image))
