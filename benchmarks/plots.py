"""Draw the latency record: time against image size, and the roofline.

python -m benchmarks.plots [--results FOLDER] [--docs docs] [--net espcn-x2]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.records import Row, machine_folder, read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One colour a library, however it is reached.
COLOURS = {
    "default": "black",
    "ncnn": "tab:green",
    "openvino": "tab:blue",
    "onnxruntime": "tab:orange",
    "torch_eager": "tab:red",
    "torch eager": "tab:red",
    "inductor": "tab:purple",
    "torch.compile": "tab:purple",
}


def main() -> None:
    """Write docs/latency.svg and docs/roofline.svg."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=machine_folder())
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--net", default="espcn-x2")
    options = parser.parse_args()
    record = read_record(options.results / "latency.json")
    rows = [row for row in record.rows if row["net"] == options.net]
    if not rows:
        raise SystemExit(f"{options.results / 'latency.json'} has no rows of {options.net}")
    for path, draw in ((options.docs / "latency.svg", draw_latency), (options.docs / "roofline.svg", draw_roofline)):
        save(path, draw, rows, f"{options.net}, 8-bit images, {record.machine}")
        print(path)


def save(path: Path, draw: object, rows: Sequence[Row], title: str) -> None:
    """Draw into an SVG file whose text stays text and whose bytes depend on the rows alone."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "tilefuse", "svg.fonttype": "none", "font.size": 9}
    figure, axes = pyplot.subplots(figsize=(9, 4.8), layout="constrained")
    draw(axes, rows)  # type: ignore[operator]
    axes.set_title(title, fontsize=9)
    axes.grid(True, which="both", alpha=0.25)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def draw_latency(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw time a megapixel against image size: one line a way of running it, dashed for the other libraries.

    Faint are those whose result is further from fp32 than the engine's own rule allows, one level.
    """
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        line = sorted((row["input_px"] / 1e6, row["median_ms"] / (row["input_px"] / 1e6)) for row in own)
        levels = max(row["max_levels"] for row in own)
        drawn = look(name) | ({"alpha": 0.35, "label": f"{name} ({levels:.0f} levels off)"} if levels > 1 else {})
        axes.plot(*zip(*line, strict=True), **drawn, linewidth=2.6 if name == "tilefuse default" else 1.1)
    axes.set(xscale="log", yscale="log", xlabel="input megapixels", ylabel="ms an input megapixel, median")
    plain(axes)
    legend(axes)


def draw_roofline(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw rates at the largest size under the measured ceilings; intensity counts every layer's traffic."""
    largest = max(row["input_px"] for row in rows)
    shown = [row for row in rows if row["input_px"] == largest]
    intensity = shown[0]["flops_a_byte"]
    reach = [intensity / 16, intensity * 16]
    for precision in dict.fromkeys(row["precision"] for row in shown):
        row = next(row for row in shown if row["precision"] == precision)
        grid = [reach[0] * (reach[1] / reach[0]) ** (step / 64) for step in range(65)]
        roof = [min(row["matmul_gflops"], each * row["copy_gbs"]) for each in grid]
        axes.plot(
            grid, roof, label=f"ceiling {precision}", linewidth=2, color="gray" if precision == "fp32" else "silver"
        )
    for place, row in enumerate(sorted(shown, key=lambda row: -row["gflops"])):
        # Apart by a hair: all stand at the net's one intensity.
        x = intensity * 1.015**place
        axes.plot([x], [row["gflops"]], **(look(row["name"]) | {"linestyle": "none"}))
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte of the layers' traffic", ylabel="GFLOP/s")
    plain(axes)
    legend(axes)


def look(name: str) -> dict[str, Any]:
    """Choose how a way of running is drawn: tilefuse solid with discs, others dashed with squares, bf16 hollow."""
    own = name.startswith("tilefuse ")
    library = next((library for library in COLOURS if library in name), "")
    return {
        "label": name,
        "color": COLOURS.get(library, "tab:brown"),
        "linestyle": "-" if own else "--",
        "marker": "^" if "channels_last" in name else ("o" if own else "s"),
        "markersize": 4,
        "fillstyle": "none" if "bf16" in name else "full",
    }


def plain(axes: Axes) -> None:
    """Write the ticks' numbers out instead of as powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def legend(axes: Axes) -> None:
    """List the names beside the drawing."""
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


if __name__ == "__main__":
    main()
