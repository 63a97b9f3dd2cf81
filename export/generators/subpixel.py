"""How checkpoints of ESPCN and SRVGGNetCompact are recognised."""

from tilefuse.errors import ModelError
from tilefuse.export.descriptor import (
    Architecture,
    Descriptor,
    Hints,
    MisfitError,
    Tensors,
    indices_of,
    rename,
    shape_of,
    shuffle_of,
)
from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.espcn import ESPCN


def _detect_espcn(tensors: Tensors) -> bool:
    namings = (
        {"conv1.weight", "conv2.weight", "conv3.weight"},
        {"conv1.weight", "conv2.weight", "residual.weight"},
        {"first_part.0.weight", "first_part.2.weight", "last_part.0.weight"},
        {"feature_maps.0.weight", "sub_pixel.0.weight"},
    )
    return any(keys <= tensors.keys() for keys in namings)


def _convert_espcn(tensors: Tensors) -> Tensors:
    """Renames yjn870/ESPCN-pytorch and Lornatang/ESPCN-PyTorch (its clamp is left to the image's rounding)."""
    first, last = r"(?:first_part|feature_maps)\.", r"(?:last_part|sub_pixel)\."
    return rename(tensors, {first + r"0\.": "conv1.", first + r"2\.": "conv2.", last + r"0\.": "conv3."})


def _describe_espcn(tensors: Tensors, _hints: Hints) -> Descriptor:
    wide, channels = shape_of(tensors, "conv1.weight")[:2]
    narrow = shape_of(tensors, "conv2.weight")[0]
    residual = "residual.weight" in tensors
    scale, out_channels = shuffle_of(shape_of(tensors, "residual.weight" if residual else "conv3.weight")[0], channels)
    if out_channels != channels:
        raise MisfitError(f"ESPCN gives as many channels as it takes, not {out_channels} for {channels}")
    return Descriptor(
        "ESPCN",
        {"scale": scale, "channels": channels, "features": (wide, narrow), "residual": residual},
        scale=scale,
        in_channels=channels,
        out_channels=channels,
        tags=(f"{wide}-{narrow}nf", *(("luma",) if channels == 1 else ())),
    )


def _detect_compact(tensors: Tensors) -> bool:
    return "body.0.weight" in tensors and all(key.startswith("body.") and key.count(".") == 2 for key in tensors)


def _describe_compact(tensors: Tensors, hints: Hints) -> Descriptor:
    features, in_channels = shape_of(tensors, "body.0.weight")[:2]
    last = indices_of(tensors, "body.")[-1]
    if last < 2:
        raise MisfitError("body.2.weight is missing")
    scale, out_channels = shuffle_of(shape_of(tensors, f"body.{last}.weight")[0], in_channels)
    if out_channels != in_channels:
        raise MisfitError(f"{out_channels} output channels can't be added to the base of {in_channels} input channels")
    activation = "prelu" if "body.1.weight" in tensors else hints.get("act_type")
    if activation not in ("prelu", "relu", "leakyrelu"):
        raise ModelError(
            "a SRVGGNetCompact without PReLU weights does not hold its activation; "
            'save it as safetensors with the metadata hyper_parameters={"act_type": "relu"} or "leakyrelu"'
        )
    depth = (last - 2) // 2
    return Descriptor(
        "SRVGGNetCompact",
        {
            "num_in_ch": in_channels,
            "num_out_ch": out_channels,
            "num_feat": features,
            "num_conv": depth,
            "upscale": scale,
            "act_type": activation,
        },
        scale=scale,
        in_channels=in_channels,
        out_channels=out_channels,
        tags=(f"{features}nf", f"{depth}nc"),
    )


ESPCN_ARCHITECTURE = Architecture(
    "ESPCN", ESPCN, _detect_espcn, _describe_espcn, _convert_espcn, example={"scale": 2, "features": (1, 1)}
)
COMPACT_ARCHITECTURE = Architecture(
    "SRVGGNetCompact", SRVGGNetCompact, _detect_compact, _describe_compact, example={"num_feat": 1, "num_conv": 1}
)
