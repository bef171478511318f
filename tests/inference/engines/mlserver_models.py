"""The tests' models for MLServer. Loaded by the Python of a venv with mlserver, never imported by the tests."""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class _Model(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        inputs = {entry.name: NumpyCodec.decode_input(entry) for entry in payload.inputs}
        outputs = [NumpyCodec.encode_output(name, array) for name, array in self.made(inputs).items()]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


class Asymmetric(_Model):
    """Two inputs and two outputs of unlike shapes: names or axes that were swapped show."""

    def made(self, inputs):
        return {
            "difference": inputs["a"] - 2 * inputs["b"].transpose(0, 3, 2, 1),
            "back": inputs["b"] + np.float32(0.5),
        }


class Onnx(_Model):
    """An ONNX network."""

    async def load(self):
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, providers=["CPUExecutionProvider"])
        return True

    def made(self, inputs):
        return {"scores": self.session.run(["scores"], inputs)[0]}
