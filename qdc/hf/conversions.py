"""How transformers reads tensors that a checkpoint holds as one and a class of qdc as several."""

from qdc.models.names import Names


def read_in_parts(name: str, names: Names) -> bool:
    """Let transformers split what is fused as it loads a class, and fuse it as it saves.

    An artifact has the parts by themselves, under names that this leaves alone.

    Args:
        name: of the class.
        names: of its tensors.

    Returns:
        False where this version of transformers cannot: it would leave the parts random.
    """
    if not names.fused:
        return True
    try:
        from transformers.conversion_mapping import register_checkpoint_conversion_mapping
        from transformers.core_model_loading import Split, WeightConverter
    except ImportError:
        return False
    converter = WeightConverter(
        f"{names.fused}.weight",
        [f"{part}.weight" for part in (names.query, names.key, names.value)],
        [Split(dim=0)],
    )
    register_checkpoint_conversion_mapping(name, [converter], overwrite=True)
    return True
