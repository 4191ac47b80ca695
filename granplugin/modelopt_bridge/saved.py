"""What modelopt's own state says of a model that mto.restore is restoring."""

from __future__ import annotations

from torch import nn

from granplugin.modelopt_bridge.library import ModeloptStateManager


def saved_quantizers(model: nn.Module, mode: str | None = None) -> set[str]:
    """The quantizers of the model that is being restored, by name; none where it was never in
    `mode`."""
    if not ModeloptStateManager.is_converted(model):
        return set()
    states = ModeloptStateManager(model).state_dict()
    if mode is not None and mode not in dict(states):
        return set()
    return {name for _, state in states for name in state["metadata"].get("quantizer_state", ())}
