"""KServe's server with a model that doubles; run by test_kserve.py with a Python that has kserve."""

from kserve import InferOutput, InferResponse, Model, ModelServer


class Double(Model):
    def __init__(self):
        super().__init__("double")
        self.ready = True

    async def get_input_types(self):
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]

    async def get_output_types(self):
        return [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]

    def predict(self, payload, headers=None, response_headers=None):
        x = payload.inputs[0].as_numpy()
        y = InferOutput("y", list(x.shape), "FP32")
        y.set_data_from_numpy(2 * x, binary_data=True)
        return InferResponse(payload.id, "double", [y])


if __name__ == "__main__":
    ModelServer(workers=1).start([Double()])
