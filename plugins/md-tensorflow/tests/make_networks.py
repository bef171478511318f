"""Make the TensorFlow networks of the tests, in a Python that has TensorFlow: python make_networks.py FOLDER [LANDMARKS.npz].

All weights are numbers or seeded, kernels have unlike sides and windows unlike sizes, so that exchanged axes show.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="1")

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def segmentation() -> keras.Model:
    """Return a small encoder and decoder for two channels and three classes, C last."""
    keras.utils.set_random_seed(7)
    image = keras.Input((None, None, None, 2), name="image")
    deep = keras.layers.Conv3D(4, (3, 5, 7), padding="same", activation="relu")(image)
    deep = keras.layers.MaxPooling3D(2)(deep)
    deep = keras.layers.BatchNormalization(gamma_initializer="random_normal", moving_mean_initializer="random_normal")(
        deep
    )
    deep = keras.layers.Conv3D(6, (5, 3, 1), padding="same", activation="leaky_relu")(deep)
    deep = keras.layers.Conv3DTranspose(4, 2, strides=2)(deep)
    return keras.Model(image, keras.layers.Conv3D(3, 1, name="scores")(deep))


def two_by_two() -> keras.Model:
    """Return a network of two inputs and two outputs: 2-D maps of the difference, numbers of the sum."""
    keras.utils.set_random_seed(8)
    first, second = keras.Input((24, 40, 1), name="first"), keras.Input((24, 40, 1), name="second")
    difference = keras.layers.Subtract()([first, second])
    maps = keras.layers.Conv2D(2, (3, 5), padding="same", name="maps")(difference)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, (5, 3))(keras.layers.Add()([first, second])))
    return keras.Model([first, second], {"maps": maps, "grades": keras.layers.Dense(3, name="grades")(pooled)})


def landmarks(weights: str) -> keras.Model:
    """Return the network of the embedded model `landmarks`, from the numbers in its ONNX file."""
    with np.load(weights) as said:
        kernels, ball, voxels, flat, threshold = (said[k] for k in ("kernels", "ball", "voxels", "flat", "threshold"))

    def correlate(values: np.ndarray, name: str) -> keras.layers.Layer:
        start = keras.initializers.Constant(values.transpose(2, 3, 4, 1, 0))
        sides = values.shape[2:]
        return keras.layers.Conv3D(
            len(values), sides, padding="same", use_bias=False, kernel_initializer=start, name=name
        )

    image = keras.Input((None, None, None, 1), name="image")
    sums = correlate(kernels, "kernels")(image)
    squares = correlate(ball, "ball")(keras.ops.multiply(image, image))
    total = sums[..., 4:]
    variation = keras.ops.subtract(squares, keras.ops.divide(keras.ops.multiply(total, total), float(voxels)))
    spots = keras.ops.divide(sums[..., :4], keras.ops.sqrt(keras.ops.maximum(variation, float(flat))))
    spots = keras.layers.MaxPooling3D(3, strides=1, padding="same")(spots)
    background = keras.ops.full_like(total, float(threshold))
    return keras.Model(image, keras.layers.Concatenate(name="scores")([background, spots]))


def freeze(model: keras.Model, path: Path, size: tuple[int | None, ...]) -> None:
    """Write a frozen graph whose input is `NV_MODEL_INPUT` and whose output is `NV_MODEL_OUTPUT`, C first, as Clara Train's are."""
    to_last, to_first = [0, *range(2, len(size)), 1], [0, len(size) - 1, *range(1, len(size) - 1)]

    def call(array):
        return tf.identity(
            tf.transpose(model(tf.transpose(array, to_last), training=False), to_first), name="NV_MODEL_OUTPUT"
        )

    concrete = tf.function(call).get_concrete_function(tf.TensorSpec(size, tf.float32, name="NV_MODEL_INPUT"))
    frozen = convert_variables_to_constants_v2(concrete)
    path.write_bytes(frozen.graph.as_graph_def().SerializeToString(deterministic=True))


def clara(path: Path) -> None:
    """Write a frozen graph that has C first inside, as Clara Train's have: (N, 1, x, y, z) to two classes that add up to 1.

    The last class is more likely where the mean of the voxels at x - 1, y, and z + 1 is above 0.5.
    """
    kernel = np.zeros((3, 3, 3, 1, 2), np.float32)
    kernel[0, 1, 1, 0] = kernel[1, 1, 1, 0] = kernel[1, 1, 2, 0] = (-10 / 3, 10 / 3)
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, (None, 1, None, None, None), name="NV_MODEL_INPUT")
        deep = tf.raw_ops.Conv3D(input=image, filter=kernel, strides=[1] * 5, padding="SAME", data_format="NCDHW")
        deep = deep + np.array([5, -5], np.float32).reshape(1, 2, 1, 1, 1)
        shares = tf.exp(deep) / tf.reduce_sum(tf.exp(deep), axis=1, keepdims=True)
        tf.identity(shares, name="NV_MODEL_OUTPUT")
    path.write_bytes(graph.as_graph_def().SerializeToString(deterministic=True))


def attacks(folder: Path) -> None:
    """Write networks that run code or touch files, each of which would make `canary` in the current folder."""
    image = keras.Input((8, 8, 8, 1), name="image")
    code = keras.layers.Lambda(lambda x: (__import__("os").system("touch canary"), x)[1], output_shape=(8, 8, 8, 1))
    keras.Model(image, code(image)).save(folder / "lambda.keras")
    keras.Model(image, code(image)).save(folder / "lambda.h5")

    # Adds how many lines there are where Linux lists the network's devices: two of a heading, then one for each.
    devices = keras.layers.Lambda(
        lambda x: x + float(len(__import__("pathlib").Path("/proc/net/dev").read_text().splitlines())),
        output_shape=(8, 8, 8, 1),
    )
    keras.Model(image, devices(image)).save(folder / "devices.keras")

    class Calls(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 8, 1), tf.float32, name="image")])
        def python(self, image):
            return tf.py_function(lambda x: (Path("canary").touch(), x)[1], [image], tf.float32)

        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 8, 1), tf.float32, name="image")])
        def write(self, image):
            with tf.control_dependencies([tf.io.write_file("canary", "here")]):
                return tf.identity(image)

    module = Calls()
    tf.saved_model.save(module, str(folder / "pyfunc"), signatures=module.python.get_concrete_function())
    tf.saved_model.save(module, str(folder / "writes"), signatures=module.write.get_concrete_function())
    graph = module.write.get_concrete_function().graph.as_graph_def()
    (folder / "writes.pb").write_bytes(graph.SerializeToString(deterministic=True))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    model = segmentation()
    model.save(folder / "net.keras")
    model.save(folder / "net.h5")
    model.export(folder / "saved", verbose=False)
    freeze(model, folder / "net.pb", (None, 2, None, None, None))
    two_by_two().save(folder / "two.keras")
    half = keras.Sequential([keras.Input((16, 24, 32, 1)), keras.layers.Conv3D(2, (3, 5, 7), dtype="float16")])
    half.save(folder / "half.keras")
    squares = tf.TensorSpec((None, 3, 3), tf.float32, name="image")
    unknown = tf.function(lambda x: tf.linalg.cholesky(x)).get_concrete_function(squares)
    (folder / "unknown.pb").write_bytes(
        convert_variables_to_constants_v2(unknown).graph.as_graph_def().SerializeToString()
    )
    clara(folder / "clara.pb")
    attacks(folder)
    if len(sys.argv) > 2:
        landmarks(sys.argv[2]).save(folder / "landmarks.keras")
    # What TensorFlow makes, for the tests to compare with, by other code than that which converts.
    image = np.random.default_rng(3).standard_normal((1, 16, 24, 32, 2)).astype(np.float32)
    np.savez(folder / "net.npz", image=image, scores=model(image, training=False).numpy())


if __name__ == "__main__":
    main()
