"""What pipelines of rectified flow ask of their networks in their own calls, and how they set their schedulers."""

from __future__ import annotations

import inspect

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

PROMPTS = ["a peach", "a cat" + " sat on a dog" * 10]
"""Of different lengths, one beyond 32 tokens."""


def mu_of(pipe, x, most):
    config, tokens = pipe.scheduler.config, x.shape[2] * x.shape[3] // 4
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    m = (config.get("max_shift", most) - config.get("base_shift", 0.5)) / (high - low)
    return tokens * m + config.get("base_shift", 0.5) - m * low


def asking_sd3(pipe, x, scale):
    """(x, t) -> velocity, as the pipeline's own call has it; and its scheduler, set."""
    found = [pipe.encode_prompt(p, p, p, do_classifier_free_guidance=scale > 1) for p in PROMPTS]
    cond, uncond, pooled, unpooled = (None if rows[0] is None else torch.cat(rows) for rows in zip(*found, strict=True))
    embeds, texts = (torch.cat([uncond, cond]), torch.cat([unpooled, pooled])) if scale > 1 else (cond, pooled)

    def ask(x, t):
        rows = torch.cat([x] * 2) if scale > 1 else x
        told = {"encoder_hidden_states": embeds.to(x.dtype), "pooled_projections": texts.to(x.dtype)}
        out = pipe.transformer(hidden_states=rows, timestep=t.expand(len(rows)), **told, return_dict=False)[0]
        if scale == 1:
            return out
        without, given = out.chunk(2)
        return without + scale * (given - without)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(5, **({"mu": mu_of(pipe, x, 1.16)} if scheduler.config.use_dynamic_shifting else {}))
    return ask, scheduler


def asking_flux(pipe, x, scale):
    found = [pipe.encode_prompt(p, p, max_sequence_length=512) for p in PROMPTS]
    embeds, pooled = (torch.cat(rows) for rows in list(zip(*found, strict=True))[:2])
    b, c, h, w = x.shape
    ids = pipe._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", x.dtype)
    guidance = torch.full([b], scale) if pipe.transformer.config.guidance_embeds else None

    def ask(x, t):
        out = pipe.transformer(
            hidden_states=pipe._pack_latents(x, b, c, h, w),
            timestep=t.expand(b).to(x.dtype) / 1000,
            guidance=guidance,
            pooled_projections=pooled.to(x.dtype),
            encoder_hidden_states=embeds.to(x.dtype),
            txt_ids=found[0][2].to(x.dtype),
            img_ids=ids,
            return_dict=False,
        )[0]
        return pipe._unpack_latents(out, 8 * h, 8 * w, 8)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    sigmas = torch.linspace(1, 1 / 5, 5, dtype=torch.float64).numpy()
    scheduler.set_timesteps(sigmas=sigmas, mu=mu_of(pipe, x, 1.15))
    return ask, scheduler


def asking_qwen(pipe, x, scale):
    b, c, h, w = x.shape
    told = pipe.encode_prompt(PROMPTS), pipe.encode_prompt(["", "none"])

    def ask(x, t):
        branches = [
            pipe.transformer(
                hidden_states=pipe._pack_latents(x, b, c, h, w),
                timestep=t.expand(b).to(x.dtype) / 1000,
                encoder_hidden_states=embeds.to(x.dtype),
                encoder_hidden_states_mask=mask,
                img_shapes=[[(1, h // 2, w // 2)]] * b,
                return_dict=False,
            )[0]
            for embeds, mask in (told if scale > 1 else told[:1])
        ]
        out = branches[0]
        if scale > 1:
            both = branches[1] + scale * (out - branches[1])
            out = both * (out.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))
        return pipe._unpack_latents(out, 8 * h, 8 * w, 8)[:, :, 0]

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    sigmas = torch.linspace(1, 1 / 5, 5, dtype=torch.float64).numpy()
    scheduler.set_timesteps(sigmas=sigmas, mu=mu_of(pipe, x, 1.15))
    return ask, scheduler


def asking_z_image(pipe, x, scale):
    b = len(x)
    positive, negative = pipe.encode_prompt(list(PROMPTS), negative_prompt=["", "none"])

    def ask(x, t):
        told = [each.to(x.dtype) for each in (positive + negative if scale > 1 else positive)]
        rows = list(x.repeat(len(told) // b, 1, 1, 1).unsqueeze(2).unbind())
        out = torch.stack(pipe.transformer(rows, ((1000 - t) / 1000).expand(len(rows)), told, return_dict=False)[0])
        out = out.squeeze(2)
        return -(out[:b] + scale * (out[:b] - out[b:]) if scale > 1 else out)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 5, 5).tolist(), mu=mu_of(pipe, x, 1.15))
    return ask, scheduler


def asking_sana(pipe, x, scale):
    """As the pipeline's own call encodes: an instruction before the prompts, 300 tokens in each branch."""
    instruction = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    found = pipe.encode_prompt(PROMPTS, scale > 1, negative_prompt=["", "none"], complex_human_instruction=instruction)
    embeds, mask, unembeds, unmask = found
    if scale > 1:
        embeds, mask = torch.cat([unembeds, embeds]), torch.cat([unmask, mask])

    def ask(x, t):
        rows = x.repeat(len(embeds) // len(x), 1, 1, 1)
        told = {"encoder_hidden_states": embeds.to(x.dtype), "encoder_attention_mask": mask}
        out = pipe.transformer(rows, timestep=t.expand(len(rows)), **told, return_dict=False)[0]
        if scale == 1:
            return out
        without, given = out.chunk(2)
        return without + scale * (given - without)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(5)
    return ask, scheduler
