"""Train the embedded model: a small LLaDA on Python's standard library.

    python examples/train_tiny.py --out examples/tiny-llada --minutes 80

The objective is LLaDA's: draw t ~ U(0, 1) for every sequence (stratified over the batch), mask each
token with probability t, and minimise the cross-entropy of the masked tokens, averaged over each
sequence; that average equals the 1/t weighting in expectation, with less variance. Hidden matrices
are trained by Muon, the rest by AdamW, both with linear warm-up and decay to zero. A CUDA device is
used if there is one. ``--resume`` starts a further run of the same schedule from trained weights.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from model_card import write_card
from safetensors.torch import load_file, save_file
from tiny_corpus import split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qdc.models.decoder import Decoder
from qdc.models.llada import LLADA

VOCABULARY = 2048
MASK, END = "<|mdm_mask|>", "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE; the two special tokens get the ids 0 (end of text) and 1 (mask)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that the vocabulary has."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return int(found)


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All documents in one row of ids, an end-of-text token after each."""
    end = token_id(tokenizer, END)
    ids: list[int] = []
    for encoded in tokenizer.encode_batch(texts):
        ids.extend((*encoded.ids, end))
    return torch.tensor(ids)


def initialize(model: Decoder, generator: torch.Generator) -> None:
    """Normal weights, the two projections into the residual stream scaled down by depth."""
    depth = model.sizes.blocks
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            into_stream = ".blocks." in name and (".ff_out." in name or ".attn_out." in name)
            std = 0.02 / math.sqrt(2 * depth) if into_stream else 0.02
            torch.nn.init.normal_(weight, std=std, generator=generator)


def corrupt(
    clean: torch.Tensor, times: torch.Tensor, mask_id: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask each token of row i with probability ``times[i]``, at least one a row."""
    draw = torch.rand(clean.shape, generator=generator)
    masked = draw < times[:, None]
    masked[torch.arange(len(clean)), draw.argmin(1)] = True
    return clean.masked_fill(masked, mask_id), masked


def optimizers(model: Decoder, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embedding, head and norms."""
    inside = [w for n, w in model.named_parameters() if ".blocks." in n and w.ndim == 2]
    outside = [w for n, w in model.named_parameters() if not (".blocks." in n and w.ndim == 2)]
    return [
        torch.optim.Muon(inside, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outside, lr=rate, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


@torch.no_grad()
def held_out_loss(
    model: Decoder, ids: torch.Tensor, length: int, ratio: float, device: str, most: int
) -> float:
    """Mean cross-entropy (nats) of the masked tokens of held-out windows at one mask ratio."""
    generator = torch.Generator().manual_seed(1)
    windows = ids[: len(ids) // length * length].view(-1, length)[:most]
    total, count = 0.0, 0
    for clean in (windows[at : at + 32] for at in range(0, len(windows), 32)):
        times = torch.full((len(clean),), ratio)
        noisy, masked = corrupt(clean, times, model.sizes.mask_token, generator)
        logits = model(noisy.to(device))[masked.to(device)].float()
        total += F.cross_entropy(logits, clean[masked].to(device), reduction="sum").item()
        count += int(masked.sum())
    return total / count


def save(
    model: Decoder,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    out: Path,
    record: dict[str, object],
) -> None:
    """Write the checkpoint in the published layout, bf16, with the record of its training."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        n: w.detach().to("cpu", torch.bfloat16).contiguous() for n, w in model.named_parameters()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        "model_max_length": model.sizes.max_length,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Train, save, and write the model card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("examples/tiny-llada"))
    parser.add_argument("--steps", type=int, default=6000, help="the schedule ends here or")
    parser.add_argument("--minutes", type=float, default=80, help="here, whichever comes first")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--length", type=int, default=256, help="longest window; most are half")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="folder of an earlier run to go on from")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held_out = split()
    tokenizer = train_tokenizer(list(train.values()))
    ids, held_ids = (
        encode(tokenizer, list(train.values())),
        encode(tokenizer, list(held_out.values())),
    )
    counts = torch.bincount(ids, minlength=VOCABULARY).double() + 1
    unigram = -(counts / counts.sum()).log()
    unigram_loss = unigram[held_ids].mean().item()
    print(
        f"{len(train)} files, {len(ids):,} tokens; held out: {len(held_out)} files, "
        f"{len(held_ids):,} tokens; unigram {unigram_loss:.3f} nats",
        flush=True,
    )

    config: dict[str, Any] = {
        "architectures": ["LLaDAModelLM"],
        "model_type": LLADA.model_type,
        "d_model": 256,
        "n_layers": 6,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 768,
        "vocab_size": VOCABULARY,
        "embedding_size": VOCABULARY,
        "max_sequence_length": options.length,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "mask_token_id": token_id(tokenizer, MASK),
        "eos_token_id": token_id(tokenizer, END),
        "pad_token_id": token_id(tokenizer, END),
        **{field: values[0] for field, values in LLADA.variants.items()},
        "torch_dtype": "bfloat16",
    }
    generator = torch.Generator().manual_seed(options.seed)
    model = LLADA.network(LLADA.read(config))
    initialize(model, generator)
    earlier: list[dict[str, object]] = []
    if options.resume is not None:
        model.load_state_dict(load_file(options.resume / "model.safetensors"))
        model.float()
        earlier = json.loads((options.resume / "training.json").read_text())["runs"]
    model.to(device)
    optimizer_list = optimizers(model, options.rate)

    start = time.monotonic()
    step, running, tokens = 0, 0.0, 0
    while True:
        progress = max(step / options.steps, (time.monotonic() - start) / (60 * options.minutes))
        if progress >= 1:
            break
        factor = min(1.0, (step + 1) / 100) * min(1.0, (1 - progress) / 0.7)
        for optimizer in optimizer_list:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * factor
        length = options.length if step % 4 == 0 else options.length // 2
        batch = options.tokens // length
        offsets = torch.randint(len(ids) - length, (batch,), generator=generator)
        clean = ids[offsets[:, None] + torch.arange(length)]
        times = (torch.arange(batch) + torch.rand(1, generator=generator)) / batch
        noisy, masked = corrupt(clean, times, model.sizes.mask_token, generator)
        with torch.autocast(device, torch.bfloat16):
            hidden = model(noisy.to(device))
            losses = F.cross_entropy(
                hidden[masked.to(device)].float(), clean[masked].to(device), reduction="none"
            )
        weight = (1 / masked.sum(1)).repeat_interleave(masked.sum(1)).to(device)
        loss = (losses * weight).sum() / batch
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizer_list:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + clean.numel()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step}  loss {running:.3f}  {time.monotonic() - start:.0f} s", flush=True)
        if step % 500 == 0:
            now = {
                r: held_out_loss(model, held_ids, options.length, r, device, 96)
                for r in (0.15, 0.5, 0.85)
            }
            print("held out", {r: round(v, 3) for r, v in now.items()}, flush=True)
            save(
                model, config, tokenizer, options.out, {"unfinished at step": step, "held_out": now}
            )

    model.to(device, torch.bfloat16).float()
    record: dict[str, object] = {
        "files": len(train),
        "tokens_in_corpus": len(ids),
        "held_out_files": sorted(held_out),
        "held_out_tokens": len(held_ids),
        "runs": [
            *earlier,
            {
                "steps": step,
                "tokens": tokens,
                "rate": options.rate,
                "seed": options.seed,
                "seconds": round(time.monotonic() - start),
            },
        ],
        "tokens_of_a_step": options.tokens,
        "window_lengths": [options.length // 2, options.length],
        "device": device,
        "torch": torch.__version__,
        "parameters": sum(w.numel() for w in model.parameters()),
        "unigram_cross_entropy": round(unigram_loss, 4),
        "held_out_cross_entropy": {
            str(r): round(held_out_loss(model, held_ids, options.length, r, device, 10**9), 4)
            for r in (0.15, 0.5, 0.85)
        },
    }
    save(model, config, tokenizer, options.out, record)
    write_card(options.out)
    print(json.dumps({k: v for k, v in record.items() if k != "held_out_files"}, indent=2))


if __name__ == "__main__":
    main()
