"""What steers small random pipelines beside their texts: IP-Adapters, ControlNets, and what these are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from tiny import BARE, seeded, stable_diffusion
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection


def with_image_prompts(make: Callable[[], Any] = stable_diffusion, kinds: Sequence[str] = ("plain",)) -> Any:
    """A pipeline with IP-Adapters of random weights, "plain" or "plus", and an image encoder."""

    def made() -> Any:
        pipe = make()
        pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet) for _ in kinds])
        layers = pipe.unet.encoder_hid_proj.image_projection_layers
        for j, kind in enumerate(kinds):
            if kind == "plus":
                width = pipe.unet.config.cross_attention_dim
                layers[j] = IPAdapterPlusImageProjection(32, width, 64, depth=1, dim_head=32, heads=2, num_queries=4)
        pipe.unet.eval()
        encoder = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
        size = {"height": 32, "width": 32}
        pipe.register_modules(
            image_encoder=CLIPVisionModelWithProjection(encoder).eval(),
            feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        )
        return pipe

    return seeded(made)


WIDTH = 24
"""Of an image's embedding; the encoder's hidden states have 32."""


def ip_adapter(unet: UNet2DConditionModel) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of one, by the names of the published files, random and large enough to be seen."""
    width = unet.config.cross_attention_dim
    layers = [part for name, part in unet.named_modules() if name.endswith("attn2")]
    cross = {
        f"{2 * j + 1}.{each}_ip.weight": torch.randn(layer.inner_dim, width)
        for j, layer in enumerate(layers)
        for each in ("to_k", "to_v")
    }
    proj = {"proj.weight": torch.randn(4 * width, WIDTH), "proj.bias": torch.zeros(4 * width)}
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return {"image_proj": proj | norm, "ip_adapter": cross}


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """One that steers: the layers that training begins at zero are random."""
    same = unet.config.time_cond_proj_dim is None  # else one layer is another
    channels = {"conditioning_embedding_out_channels": (8, 8, 8, 16)}
    net = ControlNetModel.from_unet(unet, **channels, load_weights_from_unet=same)
    with torch.no_grad():
        for part in (net.controlnet_cond_embedding.conv_out, net.controlnet_mid_block, *net.controlnet_down_blocks):
            torch.nn.init.normal_(part.weight, std=0.1)
    return net.eval()


def with_controlnets(cls: type, make: Callable[[], Any] = stable_diffusion, count: int = 1) -> Any:
    """A pipeline of a class with a ControlNet, or several."""

    def made() -> Any:
        parts = make().components
        nets = [controlnet(parts["unet"]) for _ in range(count)]
        more = BARE if "safety_checker" in parts else {"add_watermarker": False}
        return cls(**{**parts, **more}, controlnet=nets[0] if count == 1 else MultiControlNetModel(nets))

    return seeded(made)


def drawn(images: Sequence[int], *shape: int) -> torch.Tensor:
    """Numbers in [0, 1) for some images of a batch, each image its own."""
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(50 + j)) for j in images])


def image_prompts(images: Sequence[int], scale: float) -> dict[str, Any]:
    """Embeddings of two images to look like for each, the unconditional ones first."""
    shown = drawn(images, 2, WIDTH)
    return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(shown), shown]) if scale > 1 else shown]}


def control_images(images: Sequence[int], scale: float) -> dict[str, Any]:
    return {"control_image": drawn(images, 3, 72, 56), "controlnet_conditioning_scale": 0.75}


def several_control_images(images: Sequence[int], scale: float) -> dict[str, Any]:
    shown = drawn(images, 2, 3, 72, 56)
    return {"control_image": [shown[:, 0], shown[:, 1]], "controlnet_conditioning_scale": [0.75, 0.5]}
