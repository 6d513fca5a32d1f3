"""The quantization method ``qdc`` of transformers: packed layers in place of the model's own.

An artifact is untrusted here as in ``qdc.load``: its configuration is parsed by the same code, and
names, dtypes and shapes of all tensors are compared with the model before transformers reads them,
for transformers itself gives random weights to what it does not find.
"""

import functools
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from qdc.artifact.config import GUARD
from qdc.artifact.digests import DIGESTS, digests_text
from qdc.artifact.writer import CONFIG
from qdc.checkpoint.compiled import METHOD
from qdc.checkpoint.folder import read_json, refuse_broken
from qdc.checkpoint.layout import INDEX, SINGLE
from qdc.disk import digest_of, replace_bytes
from qdc.errors import InvalidArtifact, QdcError
from qdc.frontend.native import find_class
from qdc.frontend.unrolled import unroll_experts
from qdc.hf.files import compare, read_headers, refuse_links_out
from qdc.hf.generation import explain_native
from qdc.hf.models import OwnModel
from qdc.hf.packed import PackedModule, check, pack, tie, unpack
from qdc.hf.settings import QdcQuantization, digests_of
from qdc.ir.keys import layer_of
from qdc.numerics.finite import is_finite

POOLER = "pooler"


class QdcQuantizer(HfQuantizer):
    """Puts packed layers into a model on meta, and looks at what was loaded into them."""

    quantization_config: QdcQuantization

    def validate_environment(self, *args: Any, **settings: Any) -> None:
        """Refuse what is no artifact, and what packed layers cannot do. Raises ``QdcError``."""
        if not self.pre_quantized:
            raise QdcError(
                "transformers cannot quantize with qdc, it loads what qdc has compiled",
                help="qdc compile MODEL -o OUT, then from_pretrained('OUT')",
            )
        device_map = settings.get("device_map")
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise QdcError(
                "packed layers do not stay on disk while a model runs",
                help="give a device_map without disk: they are small",
            )

    def update_attn_implementation(self, config: PretrainedConfig) -> PretrainedConfig:
        """Change the configuration before a model is built of it, to what qdc itself builds.

        The guard is taken away, and a decoder of transformers sees both directions.
        """
        for name in GUARD:
            vars(config).pop(name, None)
        if config.dtype is None:
            config.dtype = torch.float32  # transformers would take the dtype of some scale
        if self.quantization_config.parsed.frontend == "export":
            causal = self.quantization_config.parsed.causal
            _, built = find_class(config.to_dict(), causal=causal)
            if getattr(built, "is_causal", None) is False:
                config.is_causal = False
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **settings: Any
    ) -> PreTrainedModel:
        files = settings.get("checkpoint_files")
        if not files:
            raise QdcError("an artifact is loaded from its own files, not from a state dict")
        folder = Path(files[0]).parent
        self._refuse_other_class(model)
        refuse_links_out(folder)
        digests = digests_of(folder)
        digests.check(name for name in (CONFIG, INDEX) if (folder / name).exists())
        self._verifying = ExitStack()
        self._verifying.enter_context(digests.beside(Path(file).name for file in files))
        prefix = _prefix(model)
        self.quantization_config = self.quantization_config.below(prefix)
        found = {
            name.removeprefix(prefix): header
            for name, header in read_headers(files, model.name_or_path).items()
            if name.startswith(prefix)
        }
        unroll_experts(model)
        pooler = getattr(model, POOLER, None)
        if pooler is not None and not any(name.startswith(f"{POOLER}.") for name in found):
            setattr(model, POOLER, None)  # no logits depend on it, so that qdc leaves it out
        self._add_biases(model)
        for path, codec in self.quantization_config.codecs.items():
            pack(_module(model, path), codec, path, self.quantization_config.rotation(path))
        for head, source in list(model.all_tied_weights_keys.items()):
            path = layer_of(source)
            owner = _module(model, path) if path != source else None
            if isinstance(owner, PackedModule):
                tie(_module(model, layer_of(head)), owner)
                del model.all_tied_weights_keys[head]
        compare(model, found)
        return model

    def _refuse_other_class(self, model: PreTrainedModel) -> None:
        """Refuse a class of transformers for a family of qdc that shares its ``model_type``.

        It may have the same tensors, and would look back only; or others, in two stacks.
        """
        if self.quantization_config.parsed.frontend == "fx" and not isinstance(model, OwnModel):
            raise QdcError(
                f"transformers reads this artifact with its own {type(model).__name__}, which "
                "computes something else, or from other tensors, than the model it is of",
                help="load it with qdc.load(ARTIFACT), or give transformers what qdc export writes",
            )

    def _add_biases(self, model: PreTrainedModel) -> None:
        for path in self.quantization_config.parsed.added_biases:
            linear = _module(model, path)
            if not isinstance(linear, nn.Linear) or linear.bias is not None:
                raise InvalidArtifact(
                    "added_biases names no linear of the model that has none", where=[path]
                )
            linear.bias = nn.Parameter(
                torch.empty(linear.out_features, dtype=linear.weight.dtype, device="meta")
            )

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **settings: Any
    ) -> PreTrainedModel:
        self._verifying.close()
        for path, module in model.named_modules():
            check(module, path)
        refuse_broken([n for n, tensor in model.named_parameters() if not is_finite(tensor)])
        model.requires_grad_(False)
        model.save_pretrained = functools.partial(_save, model)  # type: ignore[method-assign]
        model.register_forward_pre_hook(_refuse_long, with_kwargs=True)
        if getattr(model.config, "is_causal", None) is False and not isinstance(model, OwnModel):
            name = type(model).__name__
            model.generate = functools.partial(explain_native, name)  # type: ignore[assignment]
        return model

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> list[Any]:
        """None: an artifact has the names of the model as qdc builds it, experts one by one."""
        return []

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | str | None = None
    ) -> PreTrainedModel:
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype or model.dtype
        unpack(model, wanted)
        model.save_pretrained = functools.partial(_save_plain, model)  # type: ignore[method-assign]
        nn.Module.to(model, wanted)
        return model

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` writes an artifact: it does."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the packed weights can be trained: they cannot."""
        return False


def _refuse_long(model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Refuse a text that rotary positions would take without a word. Raises ``QdcError``."""
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None)
    ids = named.get("input_ids", given[0] if given else None)
    if type(longest) is int and isinstance(ids, torch.Tensor) and ids.shape[-1] > longest:
        raise QdcError(
            f"a text of {ids.shape[-1]} tokens, and the model takes {longest}",
            help="cut the text; tokenizers do with truncation=True, max_length=N",
        )


def register_method() -> None:
    """Register the method. Raises ``QdcError`` where transformers is too old for it."""
    if not hasattr(HfQuantizer, "update_attn_implementation"):
        raise QdcError(
            "this transformers shows a quantizer no configuration before it builds the model",
            help="pip install --upgrade transformers",
        )
    register_quantization_config(METHOD)(QdcQuantization)
    register_quantizer(METHOD)(QdcQuantizer)


def _prefix(model: PreTrainedModel) -> str:
    """What the artifact's names have before those of the model, if it is the base of another.

    Raises:
        InvalidArtifact: the model is neither what was compiled nor its base.
    """
    compiled, kind = model.config.architectures or [], type(model).__name__
    if kind in compiled:
        return ""
    if model.base_model is not model:
        raise InvalidArtifact(
            f"the artifact is of {', '.join(compiled) or 'no class'}, not of {kind}",
            help="load it with the auto class of what was compiled, or with AutoModel",
        )
    return f"{model.base_model_prefix}."


def _module(model: PreTrainedModel, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise InvalidArtifact("the model has no layer there", where=[path]) from error


def _save(model: PreTrainedModel, save_directory: str | Path, **options: Any) -> None:
    """``save_pretrained``, and the guard again, which transformers drops when it saves.

    Raises:
        QdcError: it is asked to upload at once, which would leave the guard out.
    """
    if options.get("push_to_hub"):
        raise QdcError("save_pretrained does not upload", help="model.push_to_hub(NAME) does")
    _save_plain(model, save_directory, **options)
    folder, help = Path(save_directory), "choose another folder"
    if options.get("is_main_process", True):
        text = json.dumps(read_json(folder / CONFIG) | GUARD, indent=1, ensure_ascii=False)
        replace_bytes(folder / CONFIG, (text + "\n").encode(), help)
        names = [CONFIG, *(name for name in (SINGLE, INDEX) if (folder / name).is_file())]
        if INDEX in names:
            names += {str(shard) for shard in read_json(folder / INDEX)["weight_map"].values()}
        listed = {name: digest_of(folder / name) for name in names}
        replace_bytes(folder / DIGESTS, digests_text(listed), help)


def _save_plain(model: PreTrainedModel, save_directory: str | Path, **options: Any) -> None:
    """``save_pretrained``, and of two layouts of weights the one that it has written.

    transformers leaves an index whose shards it has removed, and a single file beside new shards.
    Digests of what was there before go first.
    """
    if options.get("is_main_process", True):
        (Path(save_directory) / DIGESTS).unlink(missing_ok=True)
    places = [Path(save_directory) / name for name in (SINGLE, INDEX)]
    before = [_version(place) for place in places]
    type(model).save_pretrained(model, save_directory, **options)
    written = [_version(place) != version for place, version in zip(places, before, strict=True)]
    if any(written) and options.get("is_main_process", True):
        for place, new in zip(places, written, strict=True):
            if not new:
                place.unlink(missing_ok=True)


def _version(path: Path) -> tuple[int, int] | None:
    """What differs once a file is written anew; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
