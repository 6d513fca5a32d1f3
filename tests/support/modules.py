"""Two small research models of our own: one as MDLM's backbone is, one as nanoGPT is."""

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Model = TypeVar("Model", bound=nn.Module)
VOCABULARY, LENGTH, WIDTH, HEADS, MASK = 61, 16, 32, 2, 60


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale ``[B, L, W]`` by ``[B, W]``."""
    return x * (1 + scale[:, None]) + shift[:, None]


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary embedding of ``[B, heads, L, columns]``, computed where it is needed."""
    places = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
    angles = torch.outer(places, frequencies)
    cos, sin = (torch.cat((part, part), -1).to(x.dtype) for part in (angles.cos(), angles.sin()))
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class DiffusionBlock(nn.Module):
    """A DiT block: attention and MLP, each modulated and gated by the time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.attn_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attn_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.adaLN_modulation = nn.Linear(WIDTH, 6 * WIDTH)

    def forward(self, x: Tensor, frequencies: Tensor, condition: Tensor) -> Tensor:
        """``[B, L, W]``, condition ``[B, W]``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, 1)
        batch, length, _ = x.shape
        qkv = self.attn_qkv(modulate(self.norm1(x), shift1, scale1))
        q, k, v = qkv.view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, frequencies), rotate(k, frequencies)
        seen = functional.scaled_dot_product_attention(q, k, v)
        x = x + gate1[:, None] * self.attn_out(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        found: Tensor = x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return found


class Diffusion(nn.Module):
    """An MDLM-like backbone: ``forward(indices, sigma)``."""

    def __init__(self, blocks: int = 2, base: float = 10000.0) -> None:
        super().__init__()
        self.vocab_embed = nn.Embedding(VOCABULARY, WIDTH)
        self.sigma_map = nn.Sequential(nn.Linear(16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        half = WIDTH // HEADS // 2
        self.register_buffer("inv_freq", base ** -(torch.arange(half) / half), persistent=False)
        self.inv_freq: Tensor
        self.blocks = nn.ModuleList(DiffusionBlock() for _ in range(blocks))
        self.norm_final = nn.LayerNorm(WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        """``i64[B, L]``, ``f32[B]`` ``-> [B, L, vocabulary]``."""
        x = self.vocab_embed(indices)
        waves = torch.exp(-math.log(10000.0) * torch.arange(8, device=sigma.device) / 8)
        angles = sigma[:, None] * waves
        condition = functional.silu(self.sigma_map(torch.cat((angles.cos(), angles.sin()), -1)))
        for block in self.blocks:
            x = block(x, self.inv_freq, condition)
        found: Tensor = self.output(self.norm_final(x))
        return found


class Unconditional(nn.Module):
    """MDLM without time conditioning: sigma is zero."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.backbone = Diffusion(**sizes)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``i64[B, L] -> [B, L, vocabulary]``."""
        sigma = torch.zeros(input_ids.shape[0], device=input_ids.device)
        found: Tensor = self.backbone(input_ids, sigma)
        return found


class Block(nn.Module):
    """A block of nanoGPT; ``manual`` writes its attention out, as it does without flash."""

    def __init__(self, *, causal: bool, manual: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.proj = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.causal, self.manual = causal, manual
        self.register_buffer("bias", torch.tril(torch.ones(1, 1, LENGTH, LENGTH)).bool())
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, W]``."""
        batch, length, _ = x.shape
        parts = self.c_attn(self.ln_1(x)).split(WIDTH, dim=2)
        shape = (batch, length, HEADS, WIDTH // HEADS)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        if self.manual:
            scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)
            if self.causal:
                scores = scores.masked_fill(~self.bias[:, :, :length, :length], -torch.inf)
            seen = scores.softmax(-1) @ v
        else:
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.c_proj(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        found: Tensor = x + self.proj(functional.gelu(self.fc(self.ln_2(x))))
        return found


class Trunk(nn.Module):
    """What nanoGPT keeps in a dictionary of modules."""

    def __init__(self, width: int, *, causal: bool, manual: bool) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.drop, self.ln_f = nn.Dropout(0.1), nn.LayerNorm(width)
        self.h = nn.ModuleList(Block(causal=causal, manual=manual) for _ in range(2))


class NanoGPT(nn.Module):
    """nanoGPT with logits of every position: learned positions, a tied head, ``(logits, loss)``."""

    def __init__(
        self, *, causal: bool = False, manual: bool = False, width: int = WIDTH, spare: bool = False
    ) -> None:
        super().__init__()
        self.transformer = Trunk(width, causal=causal, manual=manual)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.register_buffer("scale", torch.tensor([0.75]))
        self.scale: Tensor
        if spare:
            self.spare = nn.Linear(3, 5)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``i64[B, L] -> [B, L, vocabulary]``, and a loss if there are targets."""
        length = idx.shape[1]
        assert length <= LENGTH
        places = torch.arange(length, device=idx.device)
        parts = self.transformer
        x = parts.drop(parts.wte(idx) + parts.wpe(places))
        for block in parts.h:
            x = block(x)
        logits = self.lm_head(parts.ln_f(x)) * self.scale
        loss = None
        if targets is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


def filled(module: Model, seed: int = 0) -> Model:
    """Give a module random weights that are not small, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + (1 if parameter.ndim == 1 else 0))
    return module.eval()


def ids(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids without the mask."""
    return torch.randint(0, MASK, shape, generator=torch.Generator().manual_seed(seed))
