"""llama.cpp as a library: a GGUF file, its tokenizer, and the logits of one forward.

The wheel ``xllamacpp`` holds the whole engine, whose C functions are called here by ctypes. Of
their structs only the first fields are named; the rest is room enough for every version so far.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

ROOM = 1024


class ContextParameters(ctypes.Structure):
    """The first fields of ``llama_context_params``."""

    _fields_ = (
        ("context", ctypes.c_uint32),
        ("batch", ctypes.c_uint32),
        ("physical_batch", ctypes.c_uint32),
        ("rest", ctypes.c_byte * ROOM),
    )


class ModelParameters(ctypes.Structure):
    """``llama_model_params``, taken as it is."""

    _fields_ = (("rest", ctypes.c_byte * ROOM),)


class Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embedding", ctypes.c_void_p),
        ("position", ctypes.POINTER(ctypes.c_int32)),
        ("sequences", ctypes.POINTER(ctypes.c_int32)),
        ("sequence", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    )


def library() -> Any:
    """The engine. Raises ``ImportError`` where the wheel is missing."""
    import xllamacpp

    (path,) = Path(xllamacpp.__path__[0]).glob("xllamacpp*.so")
    engine = ctypes.CDLL(str(path))
    for name, result in {
        "llama_model_default_params": ModelParameters,
        "llama_context_default_params": ContextParameters,
        "llama_batch_init": Batch,
        "llama_model_load_from_file": ctypes.c_void_p,
        "llama_init_from_model": ctypes.c_void_p,
        "llama_model_get_vocab": ctypes.c_void_p,
        "llama_get_memory": ctypes.c_void_p,
        "llama_get_logits": ctypes.POINTER(ctypes.c_float),
        "llama_model_size": ctypes.c_uint64,
        "llama_vocab_mask": ctypes.c_int32,
    }.items():
        getattr(engine, name).restype = result
    return engine


SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


class Engine:
    """One model; every forward sees all positions, as diffusion language models do."""

    def __init__(self, path: Path, length: int, *, quiet: bool = True) -> None:
        """Load a GGUF file for sequences of at most ``length`` tokens. Raises ``OSError``."""
        self.calls = library()
        if quiet:
            self.calls.llama_log_set(SILENT, None)
        self.calls.llama_backend_init()
        name = ctypes.c_char_p(str(path).encode())
        self.model = self.calls.llama_model_load_from_file(
            name, self.calls.llama_model_default_params()
        )
        if not self.model:
            raise OSError(f"llama.cpp does not load {path}")
        model = ctypes.c_void_p(self.model)
        settings = self.calls.llama_context_default_params()
        settings.context = settings.batch = settings.physical_batch = length
        context = self.calls.llama_init_from_model(model, settings)
        if not context:
            raise OSError(f"llama.cpp has no room for {length} tokens")
        self.context = ctypes.c_void_p(context)
        self.calls.llama_set_causal_attn(self.context, ctypes.c_bool(False))
        self.vocabulary = ctypes.c_void_p(self.calls.llama_model_get_vocab(model))
        self.tokens = int(self.calls.llama_vocab_n_tokens(self.vocabulary))
        self.mask = int(self.calls.llama_vocab_mask(self.vocabulary))
        self.length = length

    def __call__(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """Logits of all positions, ``f32[tokens, vocabulary]``."""
        memory = self.calls.llama_get_memory(self.context)
        if memory:
            self.calls.llama_memory_clear(ctypes.c_void_p(memory), ctypes.c_bool(True))
        batch = self.calls.llama_batch_init(len(ids), 0, 1)
        batch.count = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.position[place] = token, place
            batch.sequences[place], batch.sequence[place][0] = 1, 0
            batch.wanted[place] = 1
        code = self.calls.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        found = self.calls.llama_get_logits(self.context)
        logits = np.ctypeslib.as_array(found, (len(ids), self.tokens)).copy()
        self.calls.llama_batch_free(batch)
        return logits

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, in which special tokens are text."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self.calls.llama_tokenize(
            self.vocabulary, data, len(data), room, len(room), ctypes.c_bool(False),
            ctypes.c_bool(False),
        )  # fmt: skip
        return list(room[:count])

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        numbers, room = (
            (ctypes.c_int32 * len(ids))(*ids),
            ctypes.create_string_buffer(64 * len(ids)),
        )
        count = self.calls.llama_detokenize(
            self.vocabulary, numbers, len(ids), room, len(room), ctypes.c_bool(False),
            ctypes.c_bool(True),
        )  # fmt: skip
        return room.raw[: max(count, 0)].decode(errors="replace")
