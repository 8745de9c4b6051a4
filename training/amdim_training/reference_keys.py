"""What the original program and its Lightning-Bolts port call each tensor of an encoder.

Pure text: knows no tensors. The list indices are the same on both sides (SPEC.md 1.3, 6, 9).

    here                      original (after `encoder.module.`)      port (after `encoder.`)
    layers.0.conv.weight      layer_list.0.conv.weight                the same
    layers.2.1.bn1.bias       layer_list.2.layer_list.1.bn1.bn.bias   the same
    layers.8.weight           layer_list.8.bn.weight                  the same
    head5.bn_hidden.weight    rkhs_block_5.bn_hid.bn.weight           rkhs_block_5.bn1.bn.weight
    head5.bn_out.weight       rkhs_block_5.bn_out.bn.weight           the same
    classifiers.mlp...        evaluator.block_glb_mlp...              -
"""

from __future__ import annotations

import re

ORIGINAL_PREFIX = "encoder.module."
CLASSIFIER_PREFIX = "classifiers."
_EVALUATOR_PREFIX = "evaluator."

_TO_OWN = (
    (re.compile(r"^rkhs_block_(\d)\.(?:bn_hid|bn1)\.bn\."), r"head\1.bn_hidden."),
    (re.compile(r"^rkhs_block_(\d)\.bn_out\.bn\."), r"head\1.bn_out."),
    (re.compile(r"^rkhs_block_(\d)\."), r"head\1."),
    (re.compile(r"^layer_list\.(\d+)\.bn\."), r"layers.\1."),
    (re.compile(r"^layer_list\.(\d+)\.layer_list\.(\d+)\."), r"layers.\1.\2."),
    (re.compile(r"^layer_list\.(\d+)\."), r"layers.\1."),
)
_TO_REFERENCE = (
    (re.compile(r"^head(\d)\.bn_hidden\."), r"rkhs_block_\1.bn_hid.bn."),
    (re.compile(r"^head(\d)\.bn_out\."), r"rkhs_block_\1.bn_out.bn."),
    (re.compile(r"^head(\d)\."), r"rkhs_block_\1."),
    (re.compile(r"^layers\.(\d+)\.(\d+)\."), r"layer_list.\1.layer_list.\2."),
    (re.compile(r"^layers\.(\d+)\.(?=conv|bn)"), r"layer_list.\1."),
    (re.compile(r"^layers\.(\d+)\."), r"layer_list.\1.bn."),
)
# The positions of the layers that have weights in the original's two lists of modules.
_CLASSIFIER_LAYERS = {
    "mlp.hidden.": "block_glb_mlp.block_forward.2.",
    "mlp.norm.": "block_glb_mlp.block_forward.3.",
    "mlp.output.": "block_glb_mlp.block_forward.6.",
    "linear.": "block_glb_lin.block_forward.2.",
}
# The port's stems own a batch norm that is never applied; the trunk's own norms come after.
_UNUSED_STEM_NORM = re.compile(r"^layer_list\.[01]\.bn\.")


def reference_key(key: str) -> str:
    """Returns the original's name of an encoder's tensor, without the `encoder.module.` prefix."""
    for pattern, replacement in _TO_REFERENCE:
        if pattern.match(key):
            return _norm_inside(pattern.sub(replacement, key))
    return key


def classifier_key(key: str) -> str:
    """Returns the original's name of a tensor of `OnlineClassifiers`."""
    for own, theirs in _CLASSIFIER_LAYERS.items():
        if key.startswith(own):
            return _EVALUATOR_PREFIX + theirs + key.removeprefix(own)
    return key


def canonical_key(name: str) -> str | None:
    """Returns this project's key for a tensor's name in a reference file.

    Classifiers' keys start with `classifiers.`; names of things that are neither encoder nor
    classifier (masks, losses) and of norms that are never applied give None. An encoder's name
    that follows no rule comes back as it is, to be reported.
    """
    if name.startswith(_EVALUATOR_PREFIX):
        inner = name.removeprefix(_EVALUATOR_PREFIX)
        for own, theirs in _CLASSIFIER_LAYERS.items():
            if inner.startswith(theirs):
                return CLASSIFIER_PREFIX + own + inner.removeprefix(theirs)
        return None
    if not name.startswith("encoder."):
        return None
    inner = name.removeprefix("encoder.").removeprefix("module.")
    if _UNUSED_STEM_NORM.match(inner):
        return None
    for pattern, replacement in _TO_OWN:
        if pattern.match(inner):
            return pattern.sub(replacement, inner).replace(".bn1.bn.", ".bn1.")
    return name


def _norm_inside(key: str) -> str:
    """Adds the wrapper around a residual unit's batch norm: bn1.weight -> bn1.bn.weight."""
    return re.sub(r"\.bn1\.(?!bn\.)", ".bn1.bn.", key)
