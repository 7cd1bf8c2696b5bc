"""What users subclass in distill_config.py to say which internal tensors are distilled."""

from typing import Any

from paddle import nn


class AdaptorBase:
    """Names the internal tensors of one model.

    `mapping_layers` returns keys such as `hidden_0` with the name of a layer, whose output is meant. A tensor that no
    layer returns is given as itself inside `if self.add_tensor:`, where the forward has set it as an attribute:

        def mapping_layers(self):
            mapping_layers = {"hidden_0": "backbone.conv1"}
            if self.add_tensor:
                mapping_layers["hidden_1"] = self.model.reshape_out
            return mapping_layers

    A layer name may end in `:input` for what goes into the layer, in `.method()` for what a method of the layer returns (alone,
    `method()`: of the model), and in `[1]` for one element where it is several.

    Attributes:
        model: the model, a paddle.nn.Layer.
        add_tensor: False when layer names are asked for, True after each forward.
    """

    def __init__(self, model: nn.Layer) -> None:
        self.model = model
        self.add_tensor = False

    def mapping_layers(self) -> dict[str, Any]:
        """Keys to layer names and, while `add_tensor` is True, to tensors."""
        return {}
