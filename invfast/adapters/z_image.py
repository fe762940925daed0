"""Z-Image and Z-Image-Turbo: one stream of image and text on rectified flow. Cai et al., arXiv 2511.22699."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad

from invfast.adapters import masked
from invfast.adapters.base import Prompts
from invfast.adapters.rectified_flow import RectifiedFlow, form
from invfast.adapters.transformer import EXPORTS, Timed
from invfast.denoiser import EMBEDS, MASK, Condition, Form

MULTIPLE = 32
"""Of tokens of an image, and of a text: what is missing is filled up by learned ones."""


class ZImage(RectifiedFlow):
    """The condition is the text encoder's output and its mask.

    The network's own output points to the data, and its time runs from 0, noise, to 1; both are turned round here.
    """

    description = "Z-Image (a vae, a ZImageTransformer2DModel of its latents, a text encoder or none)"
    pipelines = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
    network = "ZImageTransformer2DModel"
    spaced = True

    def unfit(self) -> list[str | None]:
        found, config = super().unfit(), self.transformer.config
        if 2 not in config.all_patch_size or 1 not in config.all_f_patch_size:
            found.append(f"its network has patches of {config.all_patch_size} and none of 2 x 2; load Z-Image's own")
        return found

    def form(self) -> Form:
        # What is hooked, patched or compiled is called as its pipeline does it, and neither exported nor recorded.
        flat = partial(Timed, ask=_listed) if self.read["network"].opaque else _flat
        why = "exports do not take its rotations, complex numbers looked up by place; take 'eager' or 'compile'"
        return form(self.channels, flat, refused=dict.fromkeys(EXPORTS, why))

    def guidance(self, scale: float) -> float:
        """Its pipeline adds guidance_scale times the difference of both branches to the conditional one."""
        return 1 + scale if scale > 1 else 1.0

    @torch.no_grad()
    def condition(self, latents: torch.Tensor, prompts: Prompts, guidance_scale: float) -> Condition:
        if 0 < guidance_scale < 1:
            raise ValueError(
                f"Z-Image's pipeline is guided at guidance_scale={guidance_scale:g}, its weights being 1 + g and -g; "
                "here 0 and 1 are without guidance and above 1 is as in the pipeline: pass one of these"
            )
        positive = self._told(len(latents), prompts.texts, prompts.embeds, "")
        if self.guidance(guidance_scale) <= 1:
            return positive, None
        return positive, self._told(len(latents), prompts.negative, prompts.negative_embeds, "negative_")

    def _told(self, batch: int, said: list[str] | None, embeds: Any, prefix: str) -> dict[str, torch.Tensor]:
        names = f"{prefix}prompt_embeds", f"{prefix}prompt_embeds_mask"
        return masked.told(self, batch, said, embeds, None, self._encode, self.transformer.config.cap_feat_dim, names)

    def _encode(self, said: str) -> tuple[torch.Tensor, None]:
        found, _ = self.pipe.encode_prompt(said, device=self.device, do_classifier_free_guidance=False)
        return found[0].unsqueeze(0), None


def _flat(network: torch.nn.Module) -> Timed:
    """A private network on tensors, its rotations tabled: its first call would do that, which no compiler reads."""
    network.rope_embedder(torch.zeros(1, 3, dtype=torch.int64, device=network.x_pad_token.device))
    return Timed(network, _ask)


def _listed(network: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
    """By the network's own call, which takes lists; lengths are read from the device."""
    every, mask = static[EMBEDS], static.get(MASK)
    lengths = [every.shape[1]] * len(x) if mask is None else mask.sum(1).tolist()
    captions = [row[:length] for row, length in zip(every, lengths, strict=True)]
    out = network(list(x.unsqueeze(2).unbind()), (1000 - times) / 1000, captions, return_dict=False)[0]
    return -torch.stack(out).squeeze(2)


def _ask(network: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, **static: torch.Tensor) -> torch.Tensor:
    """The network's own call on tensors: the same parts in the same order, texts that are shorter masked."""
    b, c, h, w = x.shape
    told = network.t_embedder((1000 - times) / 1000 * network.t_scale).type_as(x)
    words, mask, lengths = _captions(network, static[EMBEDS], static.get(MASK))
    patches = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, 4 * c)
    image = network.all_x_embedder["2-1"](patches)
    image = torch.cat([image, network.x_pad_token.expand(b, -image.shape[1] % MULTIPLE, -1)], 1)
    in_image, in_words = _places(network, lengths, h // 2, w // 2, image.shape[1], words.shape[1])
    for layer in network.noise_refiner:
        image = layer(image, None, in_image, told)
    for layer in network.context_refiner:
        words = layer(words, mask, in_words)
    both, places = torch.cat([image, words], 1), torch.cat([in_image, in_words], 1)
    mask = None if mask is None else pad(mask, (image.shape[1], 0), value=True)
    for layer in network.layers:
        both = layer(both, mask, places, told)
    out = network.all_final_layer["2-1"](both[:, : h * w // 4], c=told)
    return -out.view(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def _captions(
    network: torch.nn.Module, embeds: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Texts (B, tokens, width) filled up to whole multiples, what of them is attended to (None: all), their lengths."""
    b, longest, _ = embeds.shape
    more, filler = -longest % MULTIPLE, network.cap_pad_token
    words = torch.cat([network.cap_embedder(embeds), filler.expand(b, more, -1)], 1)
    if mask is None:
        return words, None, torch.full((b,), longest + more, device=embeds.device)
    said = pad(mask, (0, more)).bool().unsqueeze(-1)
    lengths = (mask.sum(1) + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    attended = torch.arange(longest + more, device=embeds.device) < lengths.unsqueeze(1)
    return torch.where(said, words, filler), attended, lengths


def _places(
    network: torch.nn.Module, lengths: torch.Tensor, height: int, width: int, image: int, words: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations of the tokens of image and text, (B, tokens, width / 2) complex: an image stands behind its text."""
    b, device = len(lengths), lengths.device
    behind = (lengths + 1).reshape(b, 1).expand(b, height * width)
    rows = torch.arange(height, device=device).repeat_interleave(width).expand(b, -1)
    columns = torch.arange(width, device=device).repeat(height).expand(b, -1)
    in_image = pad(torch.stack([behind, rows, columns], -1), (0, 0, 0, image - height * width))
    count = torch.arange(1, words + 1, device=device).reshape(words, 1).expand(b, words, 1)
    places = torch.cat([in_image, pad(count, (0, 2))], 1)
    found = network.rope_embedder(places.flatten(0, 1)).unflatten(0, (b, image + words))
    return found[:, :image], found[:, image:]
