"""One measurement in a process of its own, printed as JSON: only then are start and memory its own.

python -m benchmarks.fresh start MODEL | memory MODEL WIDTH HEIGHT BUDGET | memory-torch MODEL WIDTH HEIGHT
"""

from __future__ import annotations

import json
import sys
import time


def start(model: str) -> dict[str, float]:
    """Time from import to the first and the second image of 256x256."""
    clock = [time.perf_counter()]
    import tilefuse

    clock.append(time.perf_counter())
    load = tilefuse.load
    clock.append(time.perf_counter())
    engine = load(model)
    clock.append(time.perf_counter())
    import numpy as np

    image = np.zeros((256, 256, 3), np.uint8)
    engine(image)
    clock.append(time.perf_counter())
    engine(image)
    clock.append(time.perf_counter())
    names = ("import_s", "import_torch_s", "load_s", "first_image_s", "second_image_s")
    return {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}


def memory(model: str, width: int, height: int, budget: str) -> dict[str, float]:
    """Measure how far the process grows while it compiles for an image and runs it."""
    import numpy as np

    import tilefuse
    from tilefuse.resident import peak_growth
    from tilefuse.sample import sample_picture

    engine = tilefuse.load(model, memory=None if budget == "auto" else budget)
    engine(np.zeros((24, 24, 3), np.uint8))
    image = sample_picture(height, width)
    begin = time.perf_counter()
    result, growth = peak_growth(lambda: engine(image))
    return {"growth_bytes": growth or 0, "seconds": time.perf_counter() - begin, "result_bytes": result.nbytes}


def memory_torch(model: str, width: int, height: int) -> dict[str, float]:
    """Measure torch's eager mode on the whole image."""
    import torch

    from tilefuse.export.checkpoints import load_bundled
    from tilefuse.resident import peak_growth
    from tilefuse.sample import sample_picture

    module = load_bundled(model)[0].eval()
    image = sample_picture(height, width)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            x = torch.from_numpy(image).permute(2, 0, 1)[None].float().div_(255)
            return module(x).clamp(0, 1).mul(255).round().byte()  # type: ignore[no-any-return]

    begin = time.perf_counter()
    result, growth = peak_growth(run)
    return {"growth_bytes": growth or 0, "seconds": time.perf_counter() - begin, "result_bytes": result.nbytes}


def main(arguments: list[str]) -> None:
    """Run one measurement and print it."""
    match arguments:
        case ["start", model]:
            found = start(model)
        case ["memory", model, width, height, budget]:
            found = memory(model, int(width), int(height), budget)
        case ["memory-torch", model, width, height]:
            found = memory_torch(model, int(width), int(height))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
