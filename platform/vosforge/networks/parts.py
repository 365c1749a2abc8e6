"""The parts that memory networks are composed of: one table of choices for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from vosforge.errors import UserError


@dataclass(frozen=True)
class Parts:
    """What a space-time memory network is made of. The defaults are STM's at its paper's size.

    Attributes:
        backbone: timm name of the query encoder's backbone, and of the memory encoder's.
        memory_backbone: another one for the memory encoder; None takes `backbone`.
        strides: of the feature levels, each twice the one before; the memory is read at the last one.
        pretrained: start the backbones from timm's hub (True), or from a file of weights of the bare backbone or
            of a network that contains it (its path; .safetensors or .pth).
        memory_pretrained: likewise for `memory_backbone`, where that is another one.
        frozen_batch_norm: train with the backbones' batch norm fixed, as all public re-trainings do.
        memory_encoder: "key-value" makes a key and a value from frame and mask (STM); "value" makes the value
            alone, and takes the key from the query encoder, which sees no mask (STCN); "product" and "prior" split the
            query encoder's own features into foreground and background (CAMN 2.1, schemes a and b).
        memory_keys: of "product" and "prior": "shared" by foreground and background, or "separate".
        memory_input: planes that the memory encoder sees beside RGB: "mask", "mask+others" (the sum of the other
            objects' masks) or "mask+scribbles" (positive and negative).
        planes_at: where they enter: "input" widens the first convolution, "stem" adds a 7x7 convolution of them to
            the stem's output (backbones of the ResNet family whose stem is several convolutions).
        prior: enhance the query's features by a mask, that of the previous frame or, where its quality is low, of the
            first (QPM 2.3): "none", the "union" of the objects, or each "object" by its own.
        prior_threshold: relative quality above which the previous frame's mask is taken.
        object_context: let positions of the coarsest features gather those of the same object (CAMN 2.2).
        pyramid: paths between the encoder's levels: "none", "fpn" (top-down) or "pan" (and bottom-up, CAMN 2.2).
        fpa: feature pyramid attention on what was read (CAMN, abstract).
        quality: assess predicted masks: "none", with an encoder of its "own" (QPM 2.2), or with the memory encoder's
            features, "shared".
        quality_channels, quality_cells: width of its convolutions, and side of the map that they see.
        quality_activation: of the score: "linear", which keeps its gradient and is clamped to [0, 1] outside training,
            or "sigmoid" or "relu", as the public code of QPM's authors has it.
        quality_hidden: activation of the layer before it: "relu", or the "sigmoid" of that code.
        quality_reference: what a quality is relative to: that of the "given" mask (QPM, equation 2), or of the first
            "predicted" one, as its authors' later code does on YouTube-VOS.
        memory_threshold: relative quality above which a frame may stay in memory (QPM, equation 3).
        siamese: correlate the query's features with the target's, cut from the frame where its mask was given
            (EMN 2.2).
        correlation: "depthwise", channel by channel, or "full", summed over channels.
        key_channels, value_channels: CK and CV.
        key_gain: factor on the keys' initial weights. Above 1 a network without pretrained weights starts with a
            read that is not flat, and learns to match several times faster.
        reader: "dense", "topk", "kernel" or "spatial" (SKN 2.2).
        similarity: of keys: "dot" product, or "l2", the negative squared distance (STCN).
        scale: "sqrt" divides similarities by sqrt(CK), as all public code does; None is the papers' literal form.
        top_k: positions that a query keeps; None keeps all, or 50 with `reader="topk"`.
        sigma: of the kernel readers' Gaussian, in cells.
        argmax_on: where a memory cell's best query position is sought: raw "affinity", or softmaxed "weights".
        renormalise: whether the kernel readers' weights are normalised again.
        aspp: where an atrous spatial pyramid stands: "none", on the memory's "read", or in the "decoder".
        aspp_channels: width of its branches.
        aspp_output: channels of its output on the read; None takes those of its branches.
        aspp_dilations: one branch each; dilation 1 is a 1x1 convolution, the others are 3x3.
        aspp_norm: "none", "batch" or "group".
        aspp_pooling: with a branch that pools the whole map.
        aspp_dropout: share of the output's values dropped in training.
        decoder: form of the refinement: "stm", "mivos" (wider first level, one class) or "stcn" (lighter skips).
        decoder_channels: its width.
        rectified_skip: residual blocks carry relu(x) past their convolutions rather than x.
        aggregation: how objects are merged at test: "soft", "winner-take-all" or "none" (EMN table 1).
        memory_policy: what is remembered: "previous" keeps given frames, every N-th and the previous one; "every"
            leaves the previous one out; "ends" keeps given frames and the previous one; "given" given ones alone;
            "latest" the previous one alone, given or not.
        padding: what fills up a frame to a multiple of the stride: "black" pixels, or the "mean" colour.
        memorise_margin: remember what was predicted in that margin, rather than an empty mask.
        training_objects: "all" objects of a clip together, or "one" that the training loop draws (EMN 3.1); alone,
            it is answered in training with the decoder's two classes.
    """

    backbone: str = "resnet50"
    memory_backbone: str | None = None
    strides: tuple[int, ...] = (4, 8, 16)
    pretrained: bool | str = False
    memory_pretrained: bool | str = False
    frozen_batch_norm: bool = True
    memory_encoder: Literal["key-value", "value", "product", "prior"] = "key-value"
    memory_keys: Literal["shared", "separate"] = "shared"
    memory_input: Literal["mask", "mask+others", "mask+scribbles"] = "mask+others"
    planes_at: Literal["input", "stem"] = "input"
    prior: Literal["none", "union", "object"] = "none"
    prior_threshold: float = 0.65
    object_context: bool = False
    pyramid: Literal["none", "fpn", "pan"] = "none"
    fpa: bool = False
    quality: Literal["none", "own", "shared"] = "none"
    quality_channels: int = 256
    quality_cells: int = 24
    quality_activation: Literal["linear", "sigmoid", "relu"] = "sigmoid"
    quality_hidden: Literal["relu", "sigmoid"] = "relu"
    quality_reference: Literal["given", "predicted"] = "given"
    memory_threshold: float = 0.7
    siamese: bool = False
    correlation: Literal["depthwise", "full"] = "depthwise"
    key_channels: int = 128
    value_channels: int = 512
    key_gain: float = 1.0
    reader: Literal["dense", "topk", "kernel", "spatial"] = "dense"
    similarity: Literal["dot", "l2"] = "dot"
    scale: Literal["sqrt"] | None = "sqrt"
    top_k: int | None = None
    sigma: float = 7.0
    argmax_on: Literal["affinity", "weights"] = "affinity"
    renormalise: bool = True
    aspp: Literal["none", "read", "decoder"] = "none"
    aspp_channels: int = 256
    aspp_output: int | None = None
    aspp_dilations: tuple[int, ...] = (1, 6, 12, 18)
    aspp_norm: Literal["none", "batch", "group"] = "batch"
    aspp_pooling: bool = True
    aspp_dropout: float = 0.1
    decoder: Literal["stm", "mivos", "stcn"] = "stm"
    decoder_channels: int = 256
    rectified_skip: bool = False
    aggregation: Literal["soft", "winner-take-all", "none"] = "soft"
    memory_policy: Literal["previous", "every", "given", "ends", "latest"] = "previous"
    padding: Literal["black", "mean"] = "black"
    memorise_margin: bool = False
    training_objects: Literal["all", "one"] = "all"

    # Why parts of other kinds of network are refused.
    unfit: ClassVar[str] = "no place for it"

    @classmethod
    def taken(cls) -> set[str]:
        """The parts that networks of this kind have; the others are refused."""
        return {field.name for field in fields(cls)}


def hints(kind: type[Parts] = Parts) -> dict[str, Any]:
    """The parts of a kind of network, and what each may be."""
    return get_type_hints(kind)


_HINTS = hints()
_LEAST = {
    **dict.fromkeys([part for part in _HINTS if part.endswith(("_channels", "_cells", "_output", "top_k"))], 1),
    "aspp_dropout": 0,
}
# Memories that have no encoder of their own.
SPLIT = ("product", "prior")
# Of the space-time read, which networks of another skeleton may lack.
READ = (
    "memory_keys",
    "key_channels",
    "value_channels",
    "key_gain",
    "reader",
    "similarity",
    "scale",
    "top_k",
    "sigma",
    "argmax_on",
    "renormalise",
)
ANY_MEMORY = ("key-value", "value", *SPLIT)
_ASSESSED = ("quality", ("own", "shared"))
# Parts that do nothing unless others have the values that bring them in.
_NEEDS = {
    "top_k": (("reader", ("topk", "kernel", "spatial")),),
    **dict.fromkeys(("sigma", "argmax_on", "renormalise"), (("reader", ("kernel", "spatial")),)),
    **dict.fromkeys([part for part in _HINTS if part.startswith("aspp_")], (("aspp", ("read", "decoder")),)),
    **dict.fromkeys([part for part in _HINTS if part.startswith("quality_")], (_ASSESSED,)),
    "aspp_output": (("aspp", ("read",)),),
    "memory_threshold": (_ASSESSED,),
    "prior_threshold": (("prior", ("union", "object")), _ASSESSED),
    "correlation": (("siamese", (True,)),),
    **dict.fromkeys(("memory_backbone", "planes_at"), (("memory_encoder", ("key-value", "value")),)),
}
for _part in READ:
    _NEEDS[_part] = (("memory_encoder", SPLIT if _part == "memory_keys" else ANY_MEMORY), *_NEEDS.get(_part, ()))


def choose(parts: Parts, **chosen: Any) -> Parts:
    """The parts with some chosen anew.

    Raises:
        UserError: for an unknown part, a value that it cannot have, or a choice that has no effect beside the
            others, naming the valid ones.
    """
    chosen = _valid(type(parts), chosen)
    result = replace(parts, **chosen)
    taken = parts.taken()
    changed = [part for part in chosen if chosen[part] != getattr(parts, part)]
    for part in changed:
        if part not in taken:
            reason = f"{parts.unfit}; it has {', '.join(sorted(taken))}"
            raise UserError(f"{part}={chosen[part]!r} does not go with this network: {reason}")
    needs = [(part, *need) for part in changed for need in _NEEDS.get(part, ()) if need[0] in taken]
    for part, other, values in needs:
        if getattr(result, other) not in values:
            hint = hints(type(parts))[other]
            options = " or ".join(f"{other}={value!r}" for value in values if _fits(value, hint))
            found = f"{other}={getattr(result, other)!r}"
            raise UserError(f"{part}={chosen[part]!r} has no effect with {found}; choose {options}, or leave it out")
    if chosen.get("memory_pretrained") and result.memory_backbone in (None, result.backbone):
        raise UserError("memory_pretrained has no effect without a memory_backbone of its own; pretrained serves both")
    _check_together(result)
    return result


def effective(parts: Parts, chosen: dict[str, Any]) -> dict[str, Any]:
    """The choices without those that do nothing beside the others, as `top_k` beside `reader="dense"`.

    Args:
        parts: that are chosen from.
        chosen: parts by name.

    Raises:
        UserError: for an unknown part or a value that it cannot have.
    """
    chosen = _valid(type(parts), chosen)
    result, taken = replace(parts, **chosen), parts.taken()

    def works(part: str) -> bool:
        needs = [need for need in _NEEDS.get(part, ()) if need[0] in taken]
        return all(getattr(result, other) in values for other, values in needs)

    return {part: value for part, value in chosen.items() if works(part)}


def restore(parts: Parts, saved: dict[str, Any]) -> Parts:
    """The parts that a file holds: what it leaves out is as in `parts`, and values without effect are no mistake.

    Raises:
        UserError: for an unknown part or a value that it cannot have.
    """
    result = replace(parts, **_valid(type(parts), saved))
    _check_together(result)
    return result


def _valid(kind: type[Parts], chosen: dict[str, Any]) -> dict[str, Any]:
    """The choices, each in its part's own type, or a `UserError`."""
    known = hints(kind)
    unknown = [part for part in chosen if part not in known]
    if unknown:
        raise UserError(f"unknown part {unknown[0]!r}; valid: {', '.join(known)}")
    return {part: _checked(part, value, known[part]) for part, value in chosen.items()}


def parse(words: list[str], kind: type[Parts] = Parts) -> dict[str, Any]:
    """`["reader=kernel", "sigma=5", "siamese=true"]` as parts, each value in its part's type.

    Args:
        words: one a part.
        kind: of the network's parts.

    Raises:
        UserError: for a word of another form, an unknown part, or a value that is none.
    """
    chosen = {}
    for word in words:
        part, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"expected PART=VALUE, e.g. reader=kernel, found {word!r}")
        chosen[part] = _value(text, hints(kind).get(part, str))
    return _valid(kind, chosen)


def _value(text: str, hint: Any) -> Any:
    """The text as the first type of the hint that can hold it."""
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words and _fits(words[text.lower()], hint):
        return words[text.lower()]
    for convert in (int, float, lambda t: tuple(int(n) for n in t.split(","))):
        try:
            value = convert(text)
        except ValueError:
            continue
        if _fits(value, hint):
            return value
    return text


def _checked(part: str, value: Any, hint: Any) -> Any:
    """The value in its part's own type, or a `UserError`."""
    if get_origin(hint) is tuple and isinstance(value, list):
        value = tuple(value)
    if hint is float and type(value) is int:
        value = float(value)
    if isinstance(value, Path):
        value = str(value)
    if not _fits(value, hint):
        kinds = _kinds(hint)
        if valid := [option for kind in kinds if get_origin(kind) is Literal for option in get_args(kind)]:
            valid += [None] if type(None) in kinds else []
            raise UserError(f"unknown {part} {value!r}; valid: {', '.join(map(str, valid))}")
        expected = str(hint).replace("<class '", "").replace("'>", "")
        raise UserError(f"{part} must be {expected}, found {value!r}")
    if value is not None and not isinstance(value, (str, tuple)) and value < _LEAST.get(part, value):
        raise UserError(f"{part} must be at least {_LEAST[part]}, found {value}")
    if part in ("sigma", "key_gain") and not 0 < value < math.inf:
        raise UserError(f"{part} must be above 0, found {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{part} must be a finite number, found {value}")
    return value


def _check_together(parts: Parts) -> None:
    """Refuse levels that the decoder cannot climb, a pyramid without branches, and encoders that are not there."""
    doubled = all(fine * 2 == coarse for fine, coarse in zip(parts.strides, parts.strides[1:], strict=False))
    if not parts.strides or not doubled:
        raise UserError(f"strides: expected each twice the one before, as (4, 8, 16), found {parts.strides}")
    if not parts.aspp_dilations or min(parts.aspp_dilations) < 1 or not parts.aspp_dropout < 1:
        raise UserError(
            f"aspp: expected dilations of at least 1 and a dropout below 1, "
            f"found {parts.aspp_dilations} and {parts.aspp_dropout}"
        )
    if parts.memory_encoder in SPLIT and parts.quality == "shared":
        raise UserError(f"quality='shared' needs a memory encoder, which memory_encoder={parts.memory_encoder!r} lacks")
    if parts.memory_encoder in SPLIT and parts.memory_input == "mask+scribbles":
        raise UserError(
            f"memory_encoder={parts.memory_encoder!r} sees masks alone, no scribbles; choose memory_input='mask'"
        )


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    for kind in _kinds(hint):
        if get_origin(kind) is Literal:
            if any(value is option or value == option for option in get_args(kind)):
                return True
        elif get_origin(kind) is tuple:
            if isinstance(value, tuple) and all(type(item) is get_args(kind)[0] for item in value):
                return True
        elif type(value) is kind:
            return True
    return False


_NANO = {
    "backbone": "test_resnet",
    "strides": (4, 8),
    "key_channels": 32,
    "value_channels": 64,
    "decoder_channels": 32,
    "aspp_channels": 32,
    "aspp_dilations": (1, 2, 4),
    "aspp_norm": "group",
    "quality_activation": "linear",
    "quality_channels": 32,
    "quality_cells": 8,
    "frozen_batch_norm": False,
    "key_gain": 4.0,
}
_SMALL = {
    "backbone": "resnet18",
    "key_channels": 64,
    "value_channels": 256,
    "decoder_channels": 128,
    "aspp_channels": 128,
    "aspp_norm": "group",
    "quality_activation": "linear",
    "quality_channels": 128,
    "quality_cells": 12,
    "frozen_batch_norm": False,
    "key_gain": 4.0,
}


def sizes(paper: Parts) -> dict[str, Parts]:
    """A paper's parts at three sizes: "nano" (under 2 M parameters, two levels at strides 4 and 8), "small", "paper".

    The smaller ones start without pretrained weights: their batch norm is trained and their keys start larger. Their
    pyramids normalise in groups, which also holds for batches of one. Their scores are linear: at the rates at which
    they learn a sigmoid's gradient vanishes.
    """
    own = {"memory_backbone": None, "aspp_output": None}
    return {"nano": replace(paper, **_NANO, **own), "small": replace(paper, **_SMALL, **own), "paper": paper}
