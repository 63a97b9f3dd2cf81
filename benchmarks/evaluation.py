"""Write the README's evaluation tables from what the bundled weights' headers record: python -m benchmarks.evaluation.

The figures were measured when the weights were made; `tilefuse train --evaluate NAME` measures them again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path

from safetensors import safe_open

from benchmarks.tables import replaced

Header = Mapping[str, str]
Quality = Mapping[str, float]


def main() -> None:
    """Rewrite what stands between the markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    options = parser.parse_args()
    options.readme.write_text(replaced(options.readme.read_text(), "evaluation", tables(headers())))


def headers() -> dict[str, Header]:
    """Read the headers of the bundled weights."""
    found = {}
    with as_file(files("tilefuse.export.weights")) as folder:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as stored:
                found[path.stem] = dict(stored.metadata())
    return found


def tables(found: Mapping[str, Header]) -> str:
    """Lay out upscalers, restoration and generators."""
    quality = {name: json.loads(header.get("quality", "{}")) for name, header in found.items()}
    parts = [
        _table(
            ("upscaler", "PSNR over bicubic", "SSIM over bicubic", "steps"),
            [_upscaler(name, header) for name, header in found.items() if "gain_db" in header],
        ),
        _table(
            ("restoration", "result", "compared with"),
            [_restoration(name, figures) for name, figures in quality.items() if "psnr_db" in figures],
        ),
        _table(
            ("digits", "confidence", "diversity", "Fréchet distance"),
            [
                (f"`{name}`", f"{q['confidence']:.3f}", f"{q['entropy']:.2f} nats", f"{q['frechet']:.1f}")
                for name, q in quality.items()
                if "frechet" in q
            ]
            + _references(quality),
        ),
    ]
    styles = [
        f"`{name}` ends at a style loss of {q['style']:.3f}, where the photographs begin at {q['photograph_style']:.3f}"
        for name, q in quality.items()
        if "photograph_style" in q
    ]
    told = (
        f"The classifier is right on {quality['cnn-digits']['accuracy']:.1%} of held-out digits and takes "
        f"{quality['cgan-digits']['accuracy']:.1%} of what `cgan-digits` draws for its label. {'; '.join(styles)}. "
        "Upscalers and restoration are means over five held-out photographs (luma for upscalers); confidence, "
        "diversity and Fréchet distance are the classifier's, on its features."
    )
    return "\n\n".join((*parts, told))


def _upscaler(name: str, header: Header) -> tuple[str, ...]:
    ssim = f"+{float(header['ssim_gain']):.3f}" if "ssim_gain" in header else ""
    return f"`{name}`", f"+{float(header['gain_db']):.2f} dB", ssim, header["steps"]


def _restoration(name: str, found: Quality) -> tuple[str, ...]:
    names = {
        "input": "input",
        "median_3x3": "median 3×3",
        "median_5x5": "median 5×5",
        "mean_fill": "mean fill",
        "interpolation": "interpolation",
        "JPEG": "JPEG of that rate",
    }
    rate = f" at {found['bits_per_pixel']:.2f} bits a pixel" if "bits_per_pixel" in found else ""
    others = [f"{label} {found[f'{key}_psnr_db']:.2f}" for key, label in names.items() if f"{key}_psnr_db" in found]
    return f"`{name}`", f"{found['psnr_db']:.2f} dB, SSIM {found['ssim']:.3f}{rate}", ", ".join(others) + " dB"


def _references(quality: Mapping[str, Quality]) -> list[tuple[str, ...]]:
    q = quality["gan-digits"]
    return [
        (label, f"{q[f'{key}_confidence']:.3f}", f"{q[f'{key}_entropy']:.2f} nats", f"{q[f'{key}_frechet']:.1f}")
        for key, label in (("real", "held-out digits"), ("noise", "noise"))
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
