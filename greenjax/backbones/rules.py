"""The building blocks of a family's tables of PyTorch names, and the tables that families share. NumPy only.

A table says which module here has which name in a library, and how its arrays change on the way (transforms.py). It
covers every parameter of an encoder (but for what its layout says is `lacking`), a classifier's head, a decoder or a
detector. In names, {i} is the stage and {j} the block; {next}, {odd} and {even} stand for i + 1, 2 i + 1 and 2 i + 2,
{last} for the last stage, {stages} for their number, {n} for the block counted through all stages.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from jaxtyping import Shaped
from ml_collections import ConfigDict
from numpy import ndarray

from greenjax.backbones.transforms import CONV, LINEAR, NORM, PIXEL_SHUFFLE, UPSAMPLING, Kind, token

Tensors = Mapping[str, Shaped[ndarray, "..."]]
Shape = tuple[int, ...]


class Rule(NamedTuple):
    """A module here, its name in the library, and how its arrays change on the way."""

    ours: str
    theirs: str
    kind: Kind


Table = tuple[Rule, ...]


class Fault(NamedTuple):
    """A reason why a library cannot run a model, or computes something else."""

    because: str  # about the model
    then: str  # the rest of the sentence, about the library
    kind: Literal["refused", "differs", "small images"]  # the last: on larger images the library computes the same

    def __str__(self) -> str:
        return self.because + self.then


class OtherName(NamedTuple):
    """A module that has another name in the files of some models. Files with either name are read."""

    name: str  # in the table
    other: str
    taken: Callable[[ConfigDict], bool]  # by the files of a resolved config


class Layout(NamedTuple):
    """How one library names the weights of one family of encoders, and how it computes with them.

    `fixed` and `folder` take a resolved config. `folder` makes the config.json of a folder that from_pretrained opens;
    its second argument is the set of parts of the model that are in the folder, such as "head".
    """

    encoder: Table
    prefix: str = ""  # of the encoder's names, always
    model_prefix: str = ""  # of the encoder's names in a file that holds more than the encoder
    head: Table = ()  # of a classifier; () = the library has none
    lacking: tuple[str, ...] = ()  # modules of the encoder here that the library's files do not have
    ignored: tuple[str, ...] = ()  # how the names of tensors begin that the library's files have, and no model here
    other_names: tuple[OtherName, ...] = ()
    # Of the family's `read_by_head`, the values for the head in a file, by the names of the file's tensors.
    read_by_head: Callable[[Iterable[str]], Mapping[str, Any]] = lambda names: {}
    detector: Table = ()  # of a detector beside its encoder; () = the library has none, or other ones
    detector_prefix: str = ""  # the `model_prefix` in a detector's file
    decoders: Mapping[str, Table] = {}  # by config.method
    fused: bool = False  # the green decoder of the library reads all stages, and its positions are trained
    # Of a green decoder's positions: the tensor, and its rows of zeros before them, as for a class token.
    decoder_positions: tuple[str, int] = ("decoder_pos_embed", 0)
    merge_orders: Mapping[str, Table] = {}  # the encoder in files of other orders of patch merging
    # Tensors that a strict load needs beside the model's parameters, named without a prefix.
    fixed: Callable[[ConfigDict], Tensors] = lambda config: {}
    # Tensors of a file that are compared, not read, by the end of their names: check(name, tensors).
    buffers: Mapping[str, Callable[[str, Tensors], None]] = {}
    faults: Callable[[ConfigDict], Iterable[Fault]] = lambda config: ()
    epsilon: float = 1e-5  # of the library's norms
    sets_epsilon: bool = False  # a model that takes such a file's weights takes `epsilon`, too
    any_epsilon: bool = False  # every norm of the library's has the epsilon in config.json, as here model.norm_epsilon
    folder: Callable[[ConfigDict, set[str]], dict[str, Any]] | None = None
    # The model_type in config.json of a masked autoencoder, where it has its own, and settings that it brings.
    autoencoder: str = ""
    of_autoencoder: Mapping[str, Any] = {}

    def decoders_of(self, config: ConfigDict) -> list[Table]:
        """The decoders that may be a resolved config's: a green one reads the same stages."""
        decoder = config.decoder
        green = decoder.fusion == self.fused and (self.fused or decoder.positions == "sincos")
        return [table for method, table in self.decoders.items() if green or method != "green"]


class Resizing(NamedTuple):
    """The arrays of a family's encoder whose shape follows from the window or the image size, and their resizing."""

    ending: str  # of the names of such arrays
    # (found, wanted): can an array of one shape become one of the other? Asked of arrays and of their tensors.
    fits: Callable[[Shape, Shape], bool]
    resized: Callable[[ndarray, Shape, str], ndarray]  # (array, wanted, "geometric", "bicubic" or "none" to refuse)
    line: Callable[[Shape, Shape, str], str]  # of the report, for (found, wanted, method)


# Tables that families share.

# The decoder of MAE, plain transformer blocks; GreenMIM has its names.
MAE_DECODER: Table = (
    Rule("decoder/embed", "decoder_embed", LINEAR),
    Rule("decoder", "", token("mask_token")),
    Rule("decoder/blocks/{j}/norm1", "decoder_blocks.{j}.norm1", NORM),
    Rule("decoder/blocks/{j}/attn/qkv", "decoder_blocks.{j}.attn.qkv", LINEAR),
    Rule("decoder/blocks/{j}/attn/proj", "decoder_blocks.{j}.attn.proj", LINEAR),
    Rule("decoder/blocks/{j}/norm2", "decoder_blocks.{j}.norm2", NORM),
    Rule("decoder/blocks/{j}/mlp/fc1", "decoder_blocks.{j}.mlp.fc1", LINEAR),
    Rule("decoder/blocks/{j}/mlp/fc2", "decoder_blocks.{j}.mlp.fc2", LINEAR),
    Rule("decoder/norm", "decoder_norm", NORM),
    Rule("decoder/head", "decoder_pred", LINEAR),
)


def simmim_decoder(mask_token: str) -> Table:
    """SimMIM's linear decoder and its mask token, whose name differs from library to library."""
    return (Rule("pixel_head", "decoder.0", PIXEL_SHUFFLE), Rule("", "", token(mask_token)))


# torchvision's Mask R-CNN. Its backbone is a module of the user's with `body`, the encoder, `norms` and `fpn`.
DETECTOR: Table = (
    Rule("norms/{i}", "backbone.norms.{i}", NORM),
    Rule("fpn/inner_blocks/{i}", "backbone.fpn.inner_blocks.{i}.0", CONV),
    Rule("fpn/layer_blocks/{i}", "backbone.fpn.layer_blocks.{i}.0", CONV),
    Rule("rpn/head/conv", "rpn.head.conv.0.0", CONV),
    Rule("rpn/head/cls_logits", "rpn.head.cls_logits", CONV),
    Rule("rpn/head/bbox_pred", "rpn.head.bbox_pred", CONV),
    Rule("roi_heads/box_head/fc6", "roi_heads.box_head.fc6", LINEAR),
    Rule("roi_heads/box_head/fc7", "roi_heads.box_head.fc7", LINEAR),
    Rule("roi_heads/box_predictor/cls_score", "roi_heads.box_predictor.cls_score", LINEAR),
    Rule("roi_heads/box_predictor/bbox_pred", "roi_heads.box_predictor.bbox_pred", LINEAR),
    Rule("roi_heads/mask_head/{j}", "roi_heads.mask_head.{j}.0", CONV),
    Rule("roi_heads/mask_predictor/conv5_mask", "roi_heads.mask_predictor.conv5_mask", UPSAMPLING),
    Rule("roi_heads/mask_predictor/mask_fcn_logits", "roi_heads.mask_predictor.mask_fcn_logits", CONV),
)


def head(name: str) -> Table:
    """A classifier's head."""
    return (Rule("head", name, LINEAR),)
