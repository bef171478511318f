"""A plugin for md: networks of TensorFlow and Keras, converted once to ONNX."""
