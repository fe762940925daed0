"""The figures that networks make: structure distance, LPIPS, CLIP similarity. Nothing is downloaded here.

Weights are taken where they lie on this machine; a metric without them is missing, and says what it wants. As published
(cure-lab/PnPInversion, evaluation/matrics_calculator.py). Their structure distance gives DINO pixels of 0 to 255 where
its normalisation is for 0 to 1; so does ours, or it could not be held against theirs. It resizes without antialiasing,
as torchvision did of tensors in their time. None of the three has been run on its published weights yet.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.pie.figures import Figures, tensor

DINO, CLIP = "facebook/dino-vitb8", "openai/clip-vit-large-patch14"
SQUEEZENET = "squeezenet1_1-*.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's."""
Metric = Callable[[Image.Image, Image.Image, np.ndarray, str], Figures]
"""Of source, edit, mask (H, W) and the edit's prompt."""


@torch.no_grad()
def self_similarity(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(T, T) cosines between the last layer's keys of all tokens; pixels (1, 3, H, W)."""
    seen: list[torch.Tensor] = []
    last = [module for name, module in model.named_modules() if name.endswith((".k_proj", ".key"))][-1]
    hook = last.register_forward_hook(lambda module, given, output: seen.append(output[0]))
    try:
        model(pixels)
    finally:
        hook.remove()
    keys = seen[0]
    norm = keys.norm(dim=1, keepdim=True)
    return keys @ keys.T / (norm @ norm.T).clamp(min=1e-8)


def structure(device: torch.device) -> Metric:
    """Mean squared difference of DINO's self-similarities of the whole images (Tumanyan et al., arXiv 2201.00424).

    Raises:
        OSError: no weights here.
    """
    from transformers import ViTModel

    model = ViTModel.from_pretrained(DINO, local_files_only=True, add_pooling_layer=False).to(device).eval()
    side = model.config.image_size
    mean, std = (torch.tensor(each, device=device).reshape(1, 3, 1, 1) for each in (MEAN, STD))

    def seen(picture: Image.Image) -> torch.Tensor:
        pixels = F.interpolate(255 * tensor(picture).float().to(device), (side, side), mode="bilinear")
        return self_similarity(model, (pixels - mean) / std)

    return lambda source, edited, mask, prompt: {
        "structure_distance": float(F.mse_loss(seen(edited), seen(source)).cpu())
    }


def lpips(device: torch.device) -> Metric:
    """LPIPS with SqueezeNet, of each part as `figures.pixels` takes it.

    Raises:
        ImportError: torchvision is missing. OSError: SqueezeNet's weights are.
    """
    import torchvision  # noqa: F401 (its SqueezeNet)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob(SQUEEZENET)):
        raise OSError(f"no {SQUEEZENET} in {str(folder)!r}")
    network = LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True).to(device)

    def measured(source: Image.Image, edited: Image.Image, mask: np.ndarray, prompt: str) -> Figures:
        found: Figures = {}
        for name, part in (("lpips", ~mask), ("lpips_inside", mask)):
            x, y = (tensor(each).float().to(device) * torch.from_numpy(part).to(device) for each in (source, edited))
            found[name] = float(network(y, x)) if part.any() else None
        return found

    return measured


def clip(device: torch.device) -> Metric:
    """100 times the cosine, at least 0, between the edit's prompt and the edit, whole, and its edited part over black.

    Raises:
        OSError: no weights here.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(CLIP, local_files_only=True).to(device).eval()
    read = AutoImageProcessor.from_pretrained(CLIP, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(CLIP, local_files_only=True)

    @torch.no_grad()
    def score(picture: Image.Image, prompt: str) -> float:
        most = model.config.text_config.max_position_embeddings
        words = tokenizer([prompt], return_tensors="pt", truncation=True, max_length=most)
        said = {name: words[name].to(device) for name in ("input_ids", "attention_mask")}
        seen = read(picture, return_tensors="pt")["pixel_values"].to(device)
        found = model(pixel_values=seen, **said)  # embeddings of length 1
        return max(0.0, 100 * float((found.image_embeds * found.text_embeds).sum()))

    def measured(source: Image.Image, edited: Image.Image, mask: np.ndarray, prompt: str) -> Figures:
        part = Image.fromarray(np.asarray(edited) * mask[..., None].astype(np.uint8))
        return {"clip": score(edited, prompt), "clip_inside": score(part, prompt) if mask.any() else None}

    return measured


METRICS: dict[str, tuple[Callable[[torch.device], Metric], str]] = {
    "structure distance": (structure, f"DINO ViT-B/8 here (hub: hf download {DINO})"),
    "LPIPS": (lpips, f"SqueezeNet 1.1 here (pip install torchvision, and its {SQUEEZENET} in torch.hub's checkpoints)"),
    "CLIP similarity": (clip, f"CLIP ViT-L/14 here (hub: hf download {CLIP})"),
}


def load(device: torch.device) -> tuple[dict[str, Metric], dict[str, str]]:
    """The metrics that can be had here, and why the others cannot, by name."""
    found, missing = {}, {}
    for name, (make, wanted) in METRICS.items():
        try:
            found[name] = make(device)
        except (ImportError, OSError):
            missing[name] = f"missing: no weights of {wanted}"
    return found, missing
