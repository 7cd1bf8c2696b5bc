"""Edit this file to distil internal tensors. As it stands, only the outputs are distilled (`distill_loss` in the YAML)."""

from paddleseg_ext.distill import AdaptorBase


def prepare_distill_adaptor():
    """Return StudentAdaptor, TeacherAdaptor, which name the internal tensors of the two models."""

    class StudentAdaptor(AdaptorBase):
        def mapping_layers(self):
            mapping_layers = {}
            # The output of a layer, by the layer's name (here of the tutorial's models; paddleseg_ext.cli.inspect shows yours):
            # mapping_layers["hidden_0"] = "backbone.bb_3_1"
            if self.add_tensor:
                # A tensor that the model's forward keeps as an attribute of itself:
                # mapping_layers["hidden_1"] = self.model.reshape_out
                pass
            return mapping_layers

    class TeacherAdaptor(AdaptorBase):
        def mapping_layers(self):
            mapping_layers = {}
            # mapping_layers["hidden_0"] = "backbone.bb_3_2"
            if self.add_tensor:
                # mapping_layers["hidden_1"] = self.model.reshape_out
                pass
            return mapping_layers

    return StudentAdaptor, TeacherAdaptor


def prepare_distill_config():
    """Return the list of pairs to distil. Further keys, such as "temperature", are arguments of the loss."""
    # return [
    #     {
    #         "feature_type": "hidden",
    #         "s_feature_idx": 0,
    #         "t_feature_idx": 0,
    #         "loss_function": "SegChannelwiseLoss",
    #         "weight": 50.0,
    #         "connector": "auto",
    #     }
    # ]
    return []
