"""The names of Twins-SVT and Twins-PCPVT in PyTorch, a table a layout."""

from greenjax.backbones.rules import MAE_DECODER, Fault, Layout, Rule, Table, head
from greenjax.backbones.transforms import CONV, LINEAR, NORM, PATCHES, PLAIN_CONV, Kind
from greenjax.backbones.windows import WindowedStage, padding_attends, window_faults, windows_are_whole

STAGE, BLOCK = "encoder/stages/{i}", "encoder/stages/{i}/blocks/{j}"


def _official(peg: Kind = CONV) -> Table:
    """Meituan-AutoML/Twins, and timm. `peg`: what becomes of the positional encoding generator."""
    return (
        Rule("encoder/patch_embed/proj", "patch_embeds.0.proj", PATCHES),
        Rule("encoder/patch_embed/norm", "patch_embeds.0.norm", NORM),
        Rule(f"{STAGE}/patch_embed", "patch_embeds.{i}.proj", CONV),
        Rule(f"{STAGE}/patch_embed/norm", "patch_embeds.{i}.norm", NORM),
        Rule(f"{BLOCK}/norm1", "blocks.{i}.{j}.norm1", NORM),
        Rule(f"{BLOCK}/attn/qkv", "blocks.{i}.{j}.attn.qkv", LINEAR),
        Rule(f"{BLOCK}/attn/q", "blocks.{i}.{j}.attn.q", LINEAR),
        Rule(f"{BLOCK}/attn/kv", "blocks.{i}.{j}.attn.kv", LINEAR),
        Rule(f"{BLOCK}/attn/sr", "blocks.{i}.{j}.attn.sr", CONV),
        Rule(f"{BLOCK}/attn/sr/norm", "blocks.{i}.{j}.attn.norm", NORM),
        Rule(f"{BLOCK}/attn/proj", "blocks.{i}.{j}.attn.proj", LINEAR),
        Rule(f"{BLOCK}/norm2", "blocks.{i}.{j}.norm2", NORM),
        Rule(f"{BLOCK}/mlp/fc1", "blocks.{i}.{j}.mlp.fc1", LINEAR),
        Rule(f"{BLOCK}/mlp/fc2", "blocks.{i}.{j}.mlp.fc2", LINEAR),
        Rule(f"{STAGE}/peg", "pos_block.{i}.proj.0", peg),
        Rule("encoder/norm", "norm", NORM),
    )


# SVT and PCPVT of mmpretrain, which mmdetection takes as backbones.
_MMDET: Table = (
    Rule("encoder/patch_embed/proj", "patch_embeds.0.projection", PATCHES),
    Rule("encoder/patch_embed/norm", "patch_embeds.0.norm", NORM),
    Rule(f"{STAGE}/patch_embed", "patch_embeds.{i}.projection", CONV),
    Rule(f"{STAGE}/patch_embed/norm", "patch_embeds.{i}.norm", NORM),
    Rule(f"{BLOCK}/norm1", "stages.{i}.{j}.norm1", NORM),
    Rule(f"{BLOCK}/attn/qkv", "stages.{i}.{j}.attn.qkv", LINEAR),
    Rule(f"{BLOCK}/attn/q", "stages.{i}.{j}.attn.q", LINEAR),
    Rule(f"{BLOCK}/attn/kv", "stages.{i}.{j}.attn.kv", LINEAR),
    Rule(f"{BLOCK}/attn/sr", "stages.{i}.{j}.attn.sr", CONV),
    Rule(f"{BLOCK}/attn/sr/norm", "stages.{i}.{j}.attn.norm", NORM),
    Rule(f"{BLOCK}/attn/proj", "stages.{i}.{j}.attn.proj", LINEAR),
    Rule(f"{BLOCK}/norm2", "stages.{i}.{j}.norm2", NORM),
    Rule(f"{BLOCK}/mlp/fc1", "stages.{i}.{j}.ffn.layers.0.0", LINEAR),
    Rule(f"{BLOCK}/mlp/fc2", "stages.{i}.{j}.ffn.layers.1", LINEAR),
    Rule(f"{STAGE}/peg", "position_encodings.{i}.proj", CONV),
    Rule("encoder/norm", "norm_after_stage{last}", NORM),
)


def _padding_attends_on_one_axis(stage: WindowedStage) -> Fault | None:
    """mmpretrain masks padding where both axes have some; where one axis has, its mask hides nothing."""
    if not stage.padded:
        return None if all(stage.cut) else padding_attends(stage)
    if not all(stage.cut):
        return None
    return Fault(f"{stage}, no multiple of {stage.side} on both axes", ", where the library masks padding", "differs")


LAYOUTS: dict[str, Layout] = {
    "twins": Layout(_official(), head=head("head"), epsilon=1e-6, faults=window_faults(windows_are_whole)),
    "timm": Layout(_official(), head=head("head"), epsilon=1e-6, faults=window_faults(padding_attends)),
    "mmdet": Layout(_MMDET, epsilon=1e-6, faults=window_faults(_padding_attends_on_one_axis)),
    "greenmim": Layout(
        _official(PLAIN_CONV),
        prefix="encoder.",
        decoders={"green": MAE_DECODER},
        epsilon=1e-6,
        sets_epsilon=True,
        faults=window_faults(padding_attends),
    ),
}
