"""Upscale the batches of a DataLoader: float tensors [N, C, H, W] in 0..1 in, the same out, unclipped."""

import torch
from torch.utils.data import DataLoader, TensorDataset

import tilefuse


def main() -> list[torch.Tensor]:
    """Return one upscaled batch for each batch of the loader."""
    engine = tilefuse.load("espcn-x2")
    pictures = TensorDataset(torch.rand(6, 3, 40, 60, generator=torch.Generator().manual_seed(0)))
    loader = DataLoader(pictures, batch_size=4)
    return [result.clamp(0, 1) for result in engine.stream(batch for (batch,) in loader)]


if __name__ == "__main__":
    print([tuple(batch.shape) for batch in main()])
